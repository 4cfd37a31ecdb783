"""Reads the rotary embedding of a file, with its context extension."""

import dataclasses

from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.nn import RopeConfig, longrope_factors


def rope(
    keys: KeyReader,
    width: int,
    interleaved: bool,
    *,
    log_multiplier: float | None = None,
    mscale: float = 1.0,
) -> RopeConfig:
    """Reads the rotary embedding with its context extension, as llama.cpp does.

    A factor without a type means linear scaling, a factor of 0 none.

    Args:
        keys: Of the file.
        width: Rotated elements where the file does not say.
        interleaved: As for `llama_like`.
        log_multiplier: As for `RopeConfig.extended`, default what the file says.
        mscale: As for `RopeConfig.extended`.
    """
    key = "rope.scaling.original_context_length"
    original = keys.integer(key, 0, low=0) or keys.trained_context
    old = keys.optional_real("rope.scale_linear") or 0.0
    factor = keys.optional_real("rope.scaling.factor", old)
    if log_multiplier is None:
        log_multiplier = keys.optional_real("rope.scaling.yarn_log_multiplier") or 0.0
    plain = RopeConfig(
        keys.integer("rope.dimension_count", width),
        base=keys.real("rope.freq_base", 10000.0),
        interleaved=interleaved,
        factors=_rope_factors(keys, original),
    )
    return plain.extended(
        keys.text("rope.scaling.type", "linear"),
        factor or 1.0,
        original_context=original,
        attn_factor=keys.real("rope.scaling.attn_factor", 1.0),
        log_multiplier=log_multiplier,
        mscale=mscale,
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0),
    )


def _rope_factors(keys, original: int) -> tuple[float, ...] | None:
    """Reads the divisors of the frequencies: of Llama 3, or those of LongRoPE for the context."""
    short, long = (keys.vector(f"rope_factors_{name}.weight") for name in ("short", "long"))
    of_context = longrope_factors(short, long, context=keys.context, original_context=original)
    return keys.vector("rope_freqs.weight") or of_context


def window_rope(keys: KeyReader, full: RopeConfig, base: float | None = None) -> RopeConfig:
    """Reads the rotary embedding of layers with a window.

    Args:
        keys: Of the file.
        full: That of the other layers.
        base: The base where the file does not say, for layers that no context extension changes.
            None: these layers differ in base and width alone, where the file says so.
    """
    width = keys.integer("rope.dimension_count_swa", full.width)
    if base is None:
        base = keys.real("rope.freq_base_swa", full.base)
        return dataclasses.replace(full, base=base, width=width)
    base = keys.real("rope.freq_base_swa", base)
    return RopeConfig(width, base=base, interleaved=full.interleaved)
