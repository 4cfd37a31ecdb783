"""Gemma 1 to 3."""

import math

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import POST_NORMS, with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import head_width, llama_like, rope, window_rope
from rocmforge_jax.nn import GELU


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
