"""Families whose layers have mixers of several kinds."""

import dataclasses

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, ShortConvolution


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
