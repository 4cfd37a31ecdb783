"""Families of decoders that are mostly dense; some have variants with experts."""

import dataclasses
from typing import Any

from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.families.shared import ONLY_POST_NORMS, POST_NORMS, with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, Projection, Temperature
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_rope import rope, window_rope
from rocmforge_jax.nn import GELU, XIELU, RopeConfig


def granite(
    keys: KeyReader,
    *,
    rope_can_be_off: bool = True,
    logit_divisor: float | None = None,
    **changes: Any,
) -> DecoderConfig:
    """Granite: factors of embeddings, scores, residuals and logits.

    Args:
        keys: The keys of the file.
        rope_can_be_off: Whether a key of the file can switch rotation off.
        logit_divisor: Divisor of the logits. Default: the value in the file.
        **changes: See `llama_like`.
    """
    attention: dict[str, Any] = dict(scale=keys.optional_real("attention.scale"))
    if rope_can_be_off and not keys.flag("rope.scaling.finetuned", True):  # as in llama.cpp
        attention["rope"] = None
    return llama_like(
        keys,
        interleaved=True,
        attention=attention,
        layer=dict(residual_scale=keys.optional_real("residual_scale") or 1.0),
        embedding_scale=keys.optional_real("embedding_scale") or 1.0,
        logit_scale=1 / (logit_divisor or keys.real("logit_scale")),
        **changes,
    )


def granite_swa(keys: KeyReader) -> DecoderConfig:
    """Granite with windows and sinks; some layers may have no rotation."""
    windows, key = keys.windows(4, full_first=True), "attention.rope_pattern"
    rotates = keys.flags(key) if keys.get(key) is not None else (True,) * keys.blocks

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        rotary = attention.rope if attention and rotates[i] else None
        return attention and dataclasses.replace(
            attention, window=windows[i], rope=rotary, sinks=True
        )

    return granite(keys, rope_can_be_off=False, mixer=mixer)


def minicpm(keys: KeyReader) -> DecoderConfig:
    """MiniCPM 1 and 2: factors of embeddings, residuals and logits, with defaults for old files."""
    width = keys.integer("embedding_length")
    return llama_like(
        keys,
        interleaved=True,
        embedding_scale=keys.optional_real("embedding_scale", 12.0) or 1.0,
        layer=dict(
            residual_scale=keys.optional_real("residual_scale", 1.4 / keys.layers**0.5) or 1.0
        ),
        logit_scale=1 / keys.real("logit_scale", width / 256),
    )


def baichuan(keys: KeyReader) -> DecoderConfig:
    """Baichuan: the 7B models have a rotary embedding, the 13B ones ALiBi."""
    attention: dict[str, Any] = {}
    if keys.layers == 40:  # the same test as in llama.cpp
        attention = dict(rope=None, alibi=8.0)
    return llama_like(keys, interleaved=True, attention=attention)


def qwen(keys: KeyReader) -> DecoderConfig:
    """Qwen 1: a fused attn_qkv; the file gives twice the number of hidden units."""
    hidden = keys.integer("feed_forward_length", low=2)
    return llama_like(keys, gated=dict(hidden=hidden // 2))


def apertus(keys: KeyReader) -> DecoderConfig:
    """Apertus: QK norm per head; feed-forwards without gates; xIELU with parameters per layer."""
    names = ("alpha_n", "alpha_p", "beta", "eps")
    functions = [
        XIELU(*of_layer) for of_layer in zip(*(keys.reals(f"xielu.{name}") for name in names))
    ]
    scale = keys.optional_real("attention.scale")
    config = llama_like(
        keys, attention=dict(qk_norm="head", scale=scale), gated=dict(gated=False, fused=False)
    )

    def layer(i: int, one: LayerConfig) -> LayerConfig:
        feed: Any = one.feed_forward
        return dataclasses.replace(
            one, feed_forward=dataclasses.replace(feed, activation=functions[i])
        )

    layers = tuple(layer(i, one) for i, one in enumerate(config.layers))
    return dataclasses.replace(config, layers=layers)


def spark2_5(keys: KeyReader) -> DecoderConfig:
    """Spark 2.5: windows, and one gate per attention head."""
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        attention=dict(gate="head"),
        gated=dict(activation=GELU),
        mixer=with_windows(keys.windows(4), window_rope(keys, full)),
    )


def plamo3(keys: KeyReader) -> DecoderConfig:
    """PLaMo 3: norms before and after each part; seven layers of eight may have a window."""
    full = rope(keys, head_width(keys), interleaved=False)
    windows = keys.windows(8, optional=True)
    return llama_like(
        keys,
        norms=POST_NORMS,
        attention=dict(qk_norm="head"),
        mixer=with_windows(windows, window_rope(keys, full, 10000.0)),
    )


def mistral3(keys: KeyReader) -> DecoderConfig:
    """Mistral Small 3.1, Ministral 3 and later: optionally, attention sharpens with positions."""
    scale = keys.optional_real("attention.temperature_scale")
    step = keys.integer("rope.scaling.original_context_length", keys.trained_context)
    temperature = None if scale is None else Temperature(scale, step)
    return llama_like(keys, interleaved=True, attention=dict(temperature=temperature))


def olmo2(keys: KeyReader) -> DecoderConfig:
    """OLMo 2 and 3: norms after each part, and QK norm over all heads.

    In OLMo 3, three of four layers have a window and no context extension.
    """
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        norms=ONLY_POST_NORMS,
        attention=dict(qk_norm="width"),
        mixer=with_windows(keys.windows(4, optional=True), RopeConfig(full.width, full.base)),
    )


def exaone4(keys: KeyReader) -> DecoderConfig:
    """EXAONE 4: norms after each part; in the 32B model, layers have a window or no rotation."""
    is_32b = keys.layers == 64  # the same test as in llama.cpp
    windows = keys.windows(4, 4096) if is_32b else (None,) * keys.layers
    return llama_like(
        keys,
        norms=ONLY_POST_NORMS,
        attention=dict(qk_norm="head"),
        mixer=with_windows(windows, full_rotates=not is_32b),
    )


def deci(keys: KeyReader) -> DecoderConfig:
    """Nemotron 51B and 253B: layers with attention, with a projection instead, or with neither.

    A layer may also lack the feed-forward. llama.cpp would then skip its attention, but no known
    model has a layer with attention and without a feed-forward.
    """
    heads, width = keys.integers("attention.head_count"), keys.integer("embedding_length")

    def mixer(i: int, attention: Attention | None) -> Attention | Projection | None:
        return Projection(width) if attention is None and heads[i] else attention

    return llama_like(keys, interleaved=True, mixer=mixer)
