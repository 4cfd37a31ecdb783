"""Families of dense decoders, and their variants with experts."""

from typing import Any

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like


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
