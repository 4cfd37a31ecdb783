"""LFM2, whose layers have short convolutions or attention."""

import dataclasses

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, ShortConvolution
from rocmforge_jax.models.read_feed_forward import read_scoring


def lfm2(keys: KeyReader) -> DecoderConfig:
    """LFM2: short convolutions in the layers without KV heads."""
    return _lfm2(keys, keys.integer("attention.sliding_window", 0, low=0) or None)


def lfm2moe(keys: KeyReader) -> DecoderConfig:
    """LFM2 with experts after leading dense layers."""
    routing = dict(scoring=read_scoring(keys, "sigmoid"))
    return _lfm2(keys, None, experts_required=True, routing=routing)


def _lfm2(keys: KeyReader, window: int | None, **changes) -> DecoderConfig:
    width, taps = keys.integer("embedding_length"), keys.integer("shortconv.l_cache")

    def mixer(i: int, attention: Attention | None):
        if attention is None:
            return ShortConvolution(width, taps)
        return dataclasses.replace(attention, window=window)

    attention = dict(qk_norm="head")
    return llama_like(
        keys, attention=attention, mixer=mixer, output_norm="token_embd_norm", **changes
    )
