"""Families of models: functions from the keys of a file to the configuration of a decoder.

`llama_like` reads what nearly all of them share; a family changes a few parts of it.
"""

import functools
from collections.abc import Callable

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.deepseek import deepseek2
from rocmforge_jax.models.families.delta_net import qwen3next, qwen35
from rocmforge_jax.models.families.dense import glm4, granite
from rocmforge_jax.models.families.experts import gpt_oss
from rocmforge_jax.models.families.gemma import gemma, gemma2, gemma3, gemma4
from rocmforge_jax.models.families.hybrid import lfm2
from rocmforge_jax.models.families.shared import POST_NORMS, with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like

__all__ = ["FAMILIES", "POST_NORMS", "with_windows"]


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
    "qwen3next": (functools.partial(qwen3next, experts_required=True), {}),
    "qwen35": (qwen35, {}),
    "qwen35moe": (functools.partial(qwen35, experts_required=True), {}),
    "chatglm": (_llama_like(interleaved=True), {}),
    "deepseek2": (
        deepseek2,
        {
            "attention.key_length": "the width of a latent and of the rotated part of its key",
            "attention.value_length": "the rank of the latents",
            "attention.head_count_kv": "1: all heads read one latent",
        },
    ),
    "gemma": (gemma, {}),
    "gemma2": (gemma2, {}),
    "gemma3": (gemma3, {}),
    "gemma4": (gemma4, {}),
    "gpt-oss": (gpt_oss, {}),
    "lfm2": (lfm2, {}),
    "glm4": (glm4, {}),
    "granite": (granite, {"deepstack_mapping": "where images are added; text adds nothing"}),
}
