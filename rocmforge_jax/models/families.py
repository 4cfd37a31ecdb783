"""Families of models: functions from the keys of a file to the configuration of a decoder.

`llama_like` reads what nearly all of them share; a family changes a few parts of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import head_width, llama_like, rope, window_rope
from rocmforge_jax.models.mixers import Attention, ShortConvolution
from rocmforge_jax.nn import GELU, RopeConfig, swiglu_oai

#: Norms whose results are added to the residual stream, besides those before.
POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")


def with_windows(windows, rope_of_windows: RopeConfig | None = None):
    """Returns the argument `mixer` of `llama_like` for layers that differ in their window.

    Args:
        windows: Of each layer: see `KeyReader.windows`.
        rope_of_windows: Of layers with a window, where it is another.
    """

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None or windows[i] is None:
            return attention
        rotary = rope_of_windows or attention.rope
        return dataclasses.replace(attention, window=windows[i], rope=rotary)

    return mixer


def gemma(keys: KeyReader, **changes) -> DecoderConfig:
    """Gemma: GELU gates, and embeddings multiplied by the root of the width.

    changes: As for `llama_like`.
    """
    scale = math.sqrt(keys.integer("embedding_length"))
    return llama_like(keys, gated=dict(activation=GELU), embedding_scale=scale, **changes)


def gemma2(keys: KeyReader) -> DecoderConfig:
    """Gemma 2: norms after each part, soft caps, windows in every second layer."""
    full = rope(keys, head_width(keys), interleaved=False)
    return gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(
            soft_cap=keys.optional_real("attn_logit_softcapping", 50.0),
            scale=_gemma_scale(keys, layers_of_27b=46),
        ),
        mixer=with_windows(keys.windows(2, 4096), window_rope(keys, full)),
        logit_cap=keys.optional_real("final_logit_softcapping", 30.0),
    )


def gemma3(keys: KeyReader) -> DecoderConfig:
    """Gemma 3: norms of heads, five layers of six with a window and a rotary base of their own."""
    full = rope(keys, head_width(keys), interleaved=False)
    return gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(qk_norm="head", scale=_gemma_scale(keys, layers_of_27b=62)),
        mixer=with_windows(keys.windows(6, optional=True), window_rope(keys, full, 10000.0)),
        logit_cap=keys.optional_real("final_logit_softcapping"),
    )


def _gemma_scale(keys, layers_of_27b: int) -> float | None:
    """The 27B models scale scores by the width over the heads, which is not their head width."""
    if keys.layers != layers_of_27b:
        return None
    return (keys.integer("embedding_length") // keys.integer("attention.head_count")) ** -0.5


def granite(keys: KeyReader) -> DecoderConfig:
    """Granite: factors of embeddings, scores, residuals and logits; rotation can be off."""
    attention: dict[str, Any] = dict(scale=keys.optional_real("attention.scale"))
    if not keys.flag("rope.scaling.finetuned", True):  # a switch, as in llama.cpp
        attention["rope"] = None
    return llama_like(
        keys,
        interleaved=True,
        attention=attention,
        layer=dict(residual_scale=keys.optional_real("residual_scale") or 1.0),
        embedding_scale=keys.optional_real("embedding_scale") or 1.0,
        logit_scale=1 / keys.real("logit_scale"),
    )


def gpt_oss(keys: KeyReader) -> DecoderConfig:
    """gpt-oss: sinks, windows in every second layer, clamped SwiGLU in every expert."""
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        experts_required=True,
        norms=dict(before_feed_forward="post_attention_norm"),
        attention=dict(sinks=True),
        mixer=with_windows(keys.windows(2), window_rope(keys, full)),
        mixture=dict(activation=swiglu_oai()),
        routing=dict(scoring="softmax_of_chosen", renormalize=False),
    )


def lfm2(keys: KeyReader) -> DecoderConfig:
    """LFM2: short convolutions in the layers without KV heads."""
    width, taps = keys.integer("embedding_length"), keys.integer("shortconv.l_cache")
    window = keys.integer("attention.sliding_window", 0, low=0) or None

    def mixer(i: int, attention: Attention | None):
        if attention is None:
            return ShortConvolution(width, taps)
        return dataclasses.replace(attention, window=window)

    attention = dict(qk_norm="head")
    return llama_like(keys, attention=attention, mixer=mixer, output_norm="token_embd_norm")


def _llama_like(**options) -> Callable[[KeyReader], DecoderConfig]:
    """Returns the function of a family that `llama_like` alone reads."""
    return functools.partial(llama_like, **options)


_IGNORED_WINDOW = {
    "attention.sliding_window": (
        "llama.cpp ignores it for this architecture: early Mistral files carry it"
    )
}

#: Name -> how a file of the family is read, and the keys that change nothing -> why.
FAMILIES: dict[str, tuple[Callable[[KeyReader], DecoderConfig], dict[str, str]]] = {
    "llama": (_llama_like(interleaved=True), _IGNORED_WINDOW),
    "qwen2": (llama_like, {}),
    "qwen2moe": (_llama_like(experts_required=True, routing=dict(renormalize=False)), {}),
    "qwen3": (_llama_like(attention=dict(qk_norm="head")), {}),
    "qwen3moe": (_llama_like(attention=dict(qk_norm="head"), experts_required=True), {}),
    "chatglm": (_llama_like(interleaved=True), {}),
    "gemma": (gemma, {}),
    "gemma2": (gemma2, {}),
    "gemma3": (gemma3, {}),
    "gpt-oss": (gpt_oss, {}),
    "lfm2": (lfm2, {}),
    "glm4": (_llama_like(interleaved=True, norms=POST_NORMS), {}),
    "granite": (granite, {"deepstack_mapping": "where images are added; text adds nothing"}),
}
