"""Families of decoders that are mostly dense; some have variants with experts."""

from typing import Any

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import ONLY_POST_NORMS, with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, Projection, Temperature
from rocmforge_jax.models.read_attention import head_width
from rocmforge_jax.models.read_rope import rope
from rocmforge_jax.nn import RopeConfig


def granite(
    keys: KeyReader,
    *,
    rope_can_be_off: bool = True,
    logit_divisor: float | None = None,
    **changes: Any,
) -> DecoderConfig:
    """Granite: factors of embeddings, scores, residuals and logits.

    Args:
        keys: Of the file.
        rope_can_be_off: Whether a key of the file switches rotation off.
        logit_divisor: Of the logits, default what the file says.
        **changes: As for `llama_like`.
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


def mistral3(keys: KeyReader) -> DecoderConfig:
    """Mistral Small 3.1, Ministral 3 and later ones: attention that may sharpen with positions."""
    scale = keys.optional_real("attention.temperature_scale")
    step = keys.integer("rope.scaling.original_context_length", keys.trained_context)
    temperature = None if scale is None else Temperature(scale, step)
    return llama_like(keys, interleaved=True, attention=dict(temperature=temperature))


def olmo2(keys: KeyReader) -> DecoderConfig:
    """OLMo 2 and 3: norms after each part, norms of all queries and of all keys.

    Three layers of four of OLMo 3 have a window, and no context extension.
    """
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        norms=ONLY_POST_NORMS,
        attention=dict(qk_norm="width"),
        mixer=with_windows(keys.windows(4, optional=True), RopeConfig(full.width, full.base)),
    )


def exaone4(keys: KeyReader) -> DecoderConfig:
    """EXAONE 4: norms after each part; the layers of the 32B model have a window or no rotation."""
    is_32b = keys.layers == 64  # what llama.cpp goes by
    windows = keys.windows(4, 4096) if is_32b else (None,) * keys.layers
    return llama_like(
        keys,
        norms=ONLY_POST_NORMS,
        attention=dict(qk_norm="head"),
        mixer=with_windows(windows, full_rotates=not is_32b),
    )


def deci(keys: KeyReader) -> DecoderConfig:
    """Nemotron 51B and 253B: layers with attention, with a projection in its place, or neither.

    A layer may lack the feed-forward too. llama.cpp leaves out the attention of such a layer; no
    known model has one with attention.
    """
    heads, width = keys.integers("attention.head_count"), keys.integer("embedding_length")

    def mixer(i: int, attention: Attention | None) -> Attention | Projection | None:
        return Projection(width) if attention is None and heads[i] else attention

    return llama_like(keys, interleaved=True, mixer=mixer)
