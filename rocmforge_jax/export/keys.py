"""Converts a configuration to keys of a GGUF file: the inverse of `read_config`.

The caller reads the keys back and compares the result with the configuration. If a family needs
keys that are not made here, the error names the fields that differ.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rocmforge_jax.models import Attention, DecoderConfig, Gated, Mixture
from rocmforge_jax.models.read_feed_forward import SCORINGS
from rocmforge_jax.nn import POOLINGS, RopeConfig

Keys = dict[str, Any]
#: Families for which llama.cpp reads divisors of frequencies as those of LongRoPE alone.
_LONGROPE = ("minicpm3", "phi3", "phimoe")


def keys_of(config: DecoderConfig) -> Iterator[tuple[Keys, dict[str, tuple[str, Any]]]]:
    """Yields two candidates for the keys of a configuration, each with its additional tensors.

    The first has no keys for the routing of experts, because some families have a fixed routing.
    The second has these keys. The values have the types that llama.cpp reads. The tensors map
    names to (type, values).
    """
    epsilon = "layer_norm_epsilon" if config.norm_kind != "rms" else "layer_norm_rms_epsilon"
    keys: Keys = {
        "block_count": _integer(len(config.layers) + len(config.nextn)),
        "context_length": _integer(config.context_length),
        "embedding_length": _integer(config.width),
        "vocab_size": _integer(config.vocabulary),
        f"attention.{epsilon}": np.float32(config.norm_epsilon),
    }
    if config.nextn:
        keys["nextn_predict_layers"] = _integer(len(config.nextn))
    if config.logit_cap is not None:
        keys["final_logit_softcapping"] = np.float32(config.logit_cap)
    if config.pooling is not None:
        keys["pooling_type"] = _integer(POOLINGS.index(config.pooling))
    layers = [*config.layers, *(one.layer for one in config.nextn)]
    mixers = [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]
    tensors = {}
    if mixers:
        keys |= _of_attention([layer.mixer for layer in layers], mixers)
        tensors = _of_factors(mixers, config.architecture)
    feeds = [layer.feed_forward for layer in layers]
    keys |= _of_feed_forwards(feeds) | _of_scales(config)
    mixture = next((feed for feed in feeds if isinstance(feed, Mixture)), None)
    for more in ({}, {} if mixture is None else _of_routing(mixture)):
        named = {f"{config.architecture}.{key}": value for key, value in (keys | more).items()}
        yield {"general.architecture": config.architecture} | named, tensors


def _integer(value: int):
    return np.uint32(value)


def _each(values: Sequence[int]):
    """Returns one number if it is the same for all layers, else an array of all numbers."""
    return _integer(values[0]) if len(set(values)) == 1 else np.asarray(values, np.int32)


def _of_attention(all_mixers: Sequence[Any], mixers: Sequence[Attention]) -> Keys:
    heads = [one.heads if isinstance(one, Attention) else 0 for one in all_mixers]
    kv_heads = [one.kv_heads if isinstance(one, Attention) else 0 for one in all_mixers]
    first = mixers[0]
    keys: Keys = {
        "attention.head_count": _each(heads),
        "attention.head_count_kv": _each(kv_heads),
        "attention.key_length": _integer(first.head_width),
        "attention.value_length": _integer(first.head_width),
    }
    if first.soft_cap is not None:
        keys["attn_logit_softcapping"] = np.float32(first.soft_cap)
    if first.clamp is not None:
        keys["attention.clamp_kqv"] = np.float32(first.clamp)
    if not first.causal:
        keys["attention.causal"] = False
    return keys | _of_windows(all_mixers) | _of_ropes(mixers)


def _of_windows(mixers: Sequence[Any]) -> Keys:
    windows = [getattr(one, "window", None) for one in mixers]
    sizes = {window for window in windows if window is not None}
    if not sizes:
        return {}
    pattern = np.asarray([window is not None for window in windows])
    keys: Keys = {"attention.sliding_window": _integer(max(sizes))}
    return keys | {"attention.sliding_window_pattern": pattern}


def _of_ropes(mixers: Sequence[Attention]) -> Keys:
    """Returns keys of the rotary embeddings of layers with full and with windowed attention."""
    full = next((one.rope for one in mixers if one.rope and one.window is None), None)
    windowed = next((one.rope for one in mixers if one.rope and one.window is not None), None)
    keys = _of_rope(full or windowed)
    if full is not None and windowed is not None:
        keys["rope.freq_base_swa"] = np.float32(windowed.base)
    return keys


def _of_rope(rope: RopeConfig | None) -> Keys:
    if rope is None:
        return {}
    keys: Keys = {
        "rope.dimension_count": _integer(rope.width),
        "rope.freq_base": np.float32(rope.base),
    }
    kind = "linear" if rope.yarn is None else "yarn"
    numbers: dict[str, Any] = {}
    if rope.yarn is not None:
        numbers = dict(
            original_context=rope.yarn.original_context,
            beta_fast=rope.yarn.beta_fast,
            beta_slow=rope.yarn.beta_slow,
        )
    factor = rope.magnitude / rope.extended(kind, rope.scale, **numbers).magnitude
    if not math.isclose(factor, 1):
        keys["rope.scaling.attn_factor"] = np.float32(factor)
    if rope.yarn is not None:
        keys |= {
            "rope.scaling.type": kind,
            "rope.scaling.original_context_length": _integer(rope.yarn.original_context),
            "rope.scaling.yarn_beta_fast": np.float32(rope.yarn.beta_fast),
            "rope.scaling.yarn_beta_slow": np.float32(rope.yarn.beta_slow),
        }
    elif rope.scale != 1:
        keys["rope.scaling.type"] = kind
    if rope.scale != 1:
        keys["rope.scaling.factor"] = np.float32(rope.scale)
    return keys


def _of_factors(mixers: Sequence[Attention], architecture: str) -> dict[str, tuple[str, Any]]:
    """Returns the tensors of frequency divisors, or {} if no layer has divisors."""
    factors = next((one.rope.factors for one in mixers if one.rope and one.rope.factors), None)
    if factors is None:
        return {}
    names = ("rope_freqs",)
    if architecture in _LONGROPE:
        names = ("rope_factors_short", "rope_factors_long")  # the same for all context lengths
    return {f"{name}.weight": ("F32", np.asarray(factors, np.float32)) for name in names}


def _of_feed_forwards(feeds: Sequence[Any]) -> Keys:
    dense = [feed.hidden if isinstance(feed, Gated) else 0 for feed in feeds]
    mixtures = [feed for feed in feeds if isinstance(feed, Mixture)]
    if not mixtures:
        return {"feed_forward_length": _each(dense)}
    first, leading = mixtures[0], next(i for i, one in enumerate(feeds) if isinstance(one, Mixture))
    hidden = [one.hidden if isinstance(one, Mixture) else 0 for one in feeds]
    keys: Keys = {
        # Experts have a key of their own; the dense layers of a mixture share this one.
        "feed_forward_length": _integer(max(dense) or first.hidden),
        "expert_count": _integer(first.experts),
        "expert_used_count": _integer(first.routing.used),
        "expert_feed_forward_length": _each(hidden) if not leading else _integer(first.hidden),
    }
    if leading:
        keys["leading_dense_block_count"] = _integer(leading)
    if first.shared_hidden:
        keys["expert_shared_feed_forward_length"] = _integer(first.shared_hidden)
    if first.routing.groups > 1:
        keys["expert_group_count"] = _integer(first.routing.groups)
        keys["expert_group_used_count"] = _integer(first.routing.groups_used)
    return keys


def _of_routing(mixture: Mixture) -> Keys:
    """Returns the keys of the routing of experts, and the number of shared experts."""
    routing = mixture.routing
    return {
        "expert_weights_norm": routing.renormalize,
        "expert_weights_scale": np.float32(routing.scale),
        "expert_gating_func": _integer(SCORINGS.index(routing.scoring)),
        "expert_shared_count": _integer(mixture.shared_hidden // mixture.hidden),
    }


def _of_scales(config: DecoderConfig) -> Keys:
    """Returns the keys of constant factors and parallel layers, for families with such keys."""
    if config.architecture == "gptneox":
        return {"use_parallel_residual": config.layers[0].parallel}
    if config.architecture not in ("granite", "granitemoe", "minicpm"):
        return {}
    keys: Keys = {
        "embedding_scale": np.float32(config.embedding_scale),
        "logit_scale": np.float32(1 / config.logit_scale),
        "residual_scale": np.float32(config.layers[0].residual_scale),
    }
    mixer = config.layers[0].mixer
    if isinstance(mixer, Attention) and mixer.scale is not None:
        keys["attention.scale"] = np.float32(mixer.scale)
    return keys
