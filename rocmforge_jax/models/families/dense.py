"""Families of dense decoders, and their variants with experts."""

from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import POST_NORMS
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like


def glm4(keys: KeyReader) -> DecoderConfig:
    """GLM-4: norms after each part. A file that also sees pictures rotates other pairs.

    Its `rope.dimension_sections` divide a head's pairs among the coordinates of a picture. In a
    text the first three are the position, the fourth is 0.
    """
    sections = keys.numbers("rope.dimension_sections", 4)
    if sections[3]:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.rope.dimension_sections ends with {sections[3]}, for"
            " a coordinate that a text does not have: not supported"
        )
    return llama_like(keys, interleaved=0 in sections[:2], norms=POST_NORMS)


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
