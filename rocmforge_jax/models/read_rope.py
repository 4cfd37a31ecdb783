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

    A scaling factor without a type means linear scaling. A factor of 0 means no scaling.

    Args:
        keys: The keys of the file.
        width: The default number of rotated elements per head.
        interleaved: See `llama_like`.
        log_multiplier: See `RopeConfig.extended`. Default: the value in the file.
        mscale: See `RopeConfig.extended`.
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
    """Reads the divisors of the frequencies: Llama 3's, or LongRoPE's for the context length."""
    short, long = (keys.vector(f"rope_factors_{name}.weight") for name in ("short", "long"))
    of_context = longrope_factors(short, long, context=keys.context, original_context=original)
    return keys.vector("rope_freqs.weight") or of_context


def window_rope(keys: KeyReader, full: RopeConfig, base: float | None = None) -> RopeConfig:
    """Reads the rotary embedding of layers with a window.

    Args:
        keys: The keys of the file.
        full: The rotary embedding of the layers without a window.
        base: The default base for families whose windowed layers have no context extension. None:
            the windowed layers differ from `full` only in base and width, if the file has the keys.
    """
    width = keys.integer("rope.dimension_count_swa", full.width)
    if base is None:
        base = keys.real("rope.freq_base_swa", full.base)
        return dataclasses.replace(full, base=base, width=width)
    base = keys.real("rope.freq_base_swa", base)
    return RopeConfig(width, base=base, interleaved=full.interleaved)
