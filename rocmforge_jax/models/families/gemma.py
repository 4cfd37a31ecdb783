"""Gemma 1 to 4."""

import dataclasses
import math
from typing import Any

from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.families.shared import (
    POST_NORMS,
    UNUSED_KV,
    with_shared_kv,
    with_windows,
)
from rocmforge_jax.models.feed_forward import Gated, GatedAndMixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.models.per_layer_input import PerLayerInput
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_rope import rope, window_rope
from rocmforge_jax.nn import GELU, RopeConfig


def gemma(keys: KeyReader, **changes) -> DecoderConfig:
    """Gemma: GELU gates, and embeddings multiplied by sqrt(width).

    Args:
        keys: The keys of the file.
        **changes: See `llama_like`.
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
    """Gemma 3: QK norm per head; five of six layers have a window and a separate rotary base."""
    full = rope(keys, head_width(keys), interleaved=False)
    return gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(qk_norm="head", scale=_gemma_scale(keys, layers_of_27b=62)),
        mixer=with_windows(keys.windows(6, optional=True), window_rope(keys, full, 10000.0)),
        logit_cap=keys.optional_real("final_logit_softcapping"),
    )


def _gemma_scale(keys, layers_of_27b: int) -> float | None:
    """Returns the score scale of the 27B models, which depends on width / heads; None for others.

    In these models, the quotient differs from the head width.
    """
    if keys.layers != layers_of_27b:
        return None
    return (keys.integer("embedding_length") // keys.integer("attention.head_count")) ** -0.5


def gemma4(keys: KeyReader) -> DecoderConfig:
    """Gemma 4: two head widths, KV caches that layers share, and per-layer inputs."""
    width = keys.integer("attention.key_length")
    keys.integer("attention.value_length", width, low=width, high=width)
    config = gemma(
        keys,
        norms=POST_NORMS,
        attention=dict(head_width=width, qk_norm="head", v_norm=True, scale=1.0),
        mixer=_gemma4_attention(keys),
        logit_cap=keys.optional_real("final_logit_softcapping"),
    )
    layers = [_gemma4_layer(keys, i, layer) for i, layer in enumerate(config.layers)]
    return dataclasses.replace(config, layers=tuple(layers))


def _gemma4_attention(keys: KeyReader):
    """Returns the function for the argument `mixer` of `llama_like`."""
    windows = keys.windows(6)
    own = keys.layers - keys.integer("attention.shared_kv_layers", 0, low=0, high=keys.layers - 2)
    width = keys.integer("attention.key_length_swa", keys.integer("attention.key_length"))
    keys.integer("attention.value_length_swa", width, low=width, high=width)
    base = keys.real("rope.freq_base_swa", keys.real("rope.freq_base", 10000.0))
    rotary = RopeConfig(keys.integer("rope.dimension_count_swa", width), base=base)

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None:
            return None
        if windows[i] is not None:
            changes = dict(head_width=width, window=windows[i], rope=rotary)
            attention = dataclasses.replace(attention, **changes)
        if i < own:
            v_from_k = not attention.fused_qkv and not keys.has(i, "attn_v.weight")
            attention = dataclasses.replace(attention, v_from_k=v_from_k)
        return with_shared_kv(attention, i, own, keys.layers, windows[i])

    return mixer


def _gemma4_layer(keys: KeyReader, i: int, layer: LayerConfig) -> LayerConfig:
    """Adds the optional parts of a layer, which its tensors determine."""
    width = keys.integer("embedding_length_per_layer_input", 0, low=0)
    feed: Any = layer.feed_forward
    if not isinstance(feed, Gated):
        dense = Gated(keys.integers("feed_forward_length")[i], GELU)
        feed = GatedAndMixture(dense, dataclasses.replace(feed, activation=GELU))
    borrows = isinstance(layer.mixer, Attention) and layer.mixer.source is not None
    return dataclasses.replace(
        layer,
        feed_forward=feed,
        per_layer_input=PerLayerInput(width) if width else None,
        output_factor=keys.has(i, "layer_output_scale.weight"),
        # ffn_gate_inp.scale is the scale of the router's norm, not of its product.
        output_scales=layer.output_scales - {"ffn_gate_inp"},
        unused=UNUSED_KV if borrows else frozenset(),
    )
