"""Families with mixtures of experts."""

import dataclasses

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import (
    POST_ATTENTION_NORM,
    POST_NORMS,
    no_rope_every,
    with_windows,
)
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, Temperature
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_feed_forward import read_routing, read_scoring
from rocmforge_jax.models.read_rope import rope, window_rope
from rocmforge_jax.nn import RopeConfig, swiglu_oai


def gpt_oss(keys: KeyReader) -> DecoderConfig:
    """gpt-oss: sinks, windows in every second layer, clamped SwiGLU in every expert."""
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        experts_required=True,
        norms=POST_ATTENTION_NORM,
        attention=dict(sinks=True),
        mixer=with_windows(keys.windows(2), window_rope(keys, full)),
        mixture=dict(activation=swiglu_oai()),
        routing=dict(scoring="softmax_of_chosen", renormalize=False),
    )


def minimax_m2(keys: KeyReader) -> DecoderConfig:
    """MiniMax-M2: QK norm over all heads, sigmoid scores."""
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="width"),
        routing=dict(scoring=read_scoring(keys, "sigmoid")),
    )


def bailingmoe(keys: KeyReader) -> DecoderConfig:
    """Ling: shared experts."""
    routing = read_routing(keys)
    return llama_like(keys, interleaved=True, experts_required=True, routing=routing)


def bailingmoe2(keys: KeyReader) -> DecoderConfig:
    """Ling 2: QK norm per head, a router with groups, shared experts with a separate width."""
    count = keys.integer("expert_shared_count")
    hidden = keys.integer("expert_feed_forward_length")
    shared = keys.integer("expert_shared_feed_forward_length", hidden)
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head"),
        mixture=dict(shared_hidden=count * shared),
        routing=read_routing(keys),
    )


def deepseek(keys: KeyReader) -> DecoderConfig:
    """DeepSeek MoE: leading dense layers, shared experts."""
    scale = keys.optional_real("expert_weights_scale") or 1.0
    routing = dict(renormalize=False, scale=scale)
    return llama_like(keys, interleaved=True, experts_required=True, routing=routing)


def dots1(keys: KeyReader) -> DecoderConfig:
    """dots.llm1: QK norm per head, shared experts after leading dense layers."""
    routing = read_routing(keys, "sigmoid")
    return llama_like(keys, experts_required=True, attention=dict(qk_norm="head"), routing=routing)


def afmoe(keys: KeyReader) -> DecoderConfig:
    """Trinity: gated attention with windows; every fourth layer has no rotation."""
    full = rope(keys, head_width(keys), interleaved=False)
    windowed = with_windows(keys.windows(4, optional=True), window_rope(keys, full))
    still = no_rope_every(4)

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        return still(i, windowed(i, attention))

    return llama_like(
        keys,
        experts_required=True,
        norms=POST_NORMS,
        attention=dict(qk_norm="head", gate="width"),
        mixer=mixer,
        routing=read_routing(keys, "sigmoid"),
        embedding_scale=keys.integer("embedding_length") ** 0.5,
    )


def laguna(keys: KeyReader) -> DecoderConfig:
    """Laguna: windows, attention with softplus gates, and a different number of heads per layer."""
    full = rope(keys, head_width(keys), interleaved=False)
    windows = keys.windows(4, optional=True, full_first=True)
    heads = keys.integers("attention.head_count")
    rotating = with_windows(windows, window_rope(keys, full, full.base))

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        gate = "head" if keys.outputs(i, "attn_gate.weight") in (0, heads[i]) else "width"
        made = rotating(i, attention)
        return made and dataclasses.replace(made, gate=gate)

    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head", gate_function="softplus"),
        mixer=mixer,
        routing=read_routing(keys, "sigmoid"),
    )


def mellum(keys: KeyReader) -> DecoderConfig:
    """Mellum 2: QK norm per head; layers with a window have no context extension."""
    full = rope(keys, head_width(keys), interleaved=False)
    plain = RopeConfig(full.width, full.base)
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head"),
        mixer=with_windows(keys.windows(4, optional=True), plain),
    )


def deepseek2_ocr(keys: KeyReader) -> DecoderConfig:
    """The text part of DeepSeek-OCR: DeepSeek MoE without a context extension."""
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(rope=RopeConfig(head_width(keys), keys.real("rope.freq_base", 10000.0))),
        routing=read_routing(keys),
    )


def hy_v3(keys: KeyReader) -> DecoderConfig:
    """Hunyuan 3: QK norm per head, a router with sigmoid scores, leading dense layers."""
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head"),
        routing=read_routing(keys, "sigmoid"),
    )


def exaone_moe(keys: KeyReader) -> DecoderConfig:
    """K-EXAONE: windows in three of four layers; the fourth layer has no rotation."""
    full = rope(keys, head_width(keys), interleaved=False)
    windows = with_windows(keys.windows(4), window_rope(keys, full), full_rotates=False)
    shared = keys.integer("expert_shared_feed_forward_length", 0, low=0)
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head"),
        mixer=windows,
        mixture=dict(shared_hidden=shared or keys.integer("expert_feed_forward_length")),
        routing=read_routing(keys),
    )


def hunyuan_moe(keys: KeyReader) -> DecoderConfig:
    """Hunyuan A13B: QK norm per head after the rotation; one shared expert."""
    shared = keys.integer("expert_shared_feed_forward_length", 0, low=0)
    return llama_like(
        keys,
        experts_required=True,
        attention=dict(qk_norm="head", rotates_first=True),
        mixture=dict(shared_hidden=shared or keys.integer("feed_forward_length")),
    )


def llama4(keys: KeyReader) -> DecoderConfig:
    """Llama 4: an expert's weight multiplies its input.

    Three of four layers rotate, and their tokens see only their chunk of the text. The fourth layer
    has neither rotation nor chunks; its attention sharpens with positions.
    """
    key = "attention.sliding_window"
    if keys.integer(key, 8192, low=0) == 0:
        raise GGUFError(f"{keys.path}: llama4.{key} is 0: Llama 4 without chunks is not supported")
    in_chunks, hidden = keys.windows(4, 8192), keys.integer("expert_feed_forward_length")
    rotary = window_rope(keys, rope(keys, head_width(keys), interleaved=True))
    normed = keys.integer("expert_count") != 128  # not in Maverick; the same test as in llama.cpp

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None:
            return None
        one = dataclasses.replace(attention, chunk=8192 if in_chunks[i] else None)
        if (i + 1) % 4 == 0:
            return dataclasses.replace(one, rope=None, temperature=Temperature(0.1, 8192, 1))
        rotary_here = rotary if in_chunks[i] else one.rope
        norm = "unit" if normed else None
        return dataclasses.replace(one, rope=rotary_here, qk_norm=norm, rotates_first=True)

    return llama_like(
        keys,
        interleaved=True,
        experts_required=True,
        mixer=mixer,
        mixture=dict(weights_first=True, shared_hidden=hidden),
        routing=dict(scoring="sigmoid", renormalize=False),
    )
