"""Attention over a key/value cache: of one new token of each sequence, or of several."""

from pallas_kernels.attention.api import decode_attention, prefill_attention
from pallas_kernels.attention.decode import NewTokens
from pallas_kernels.attention.rule import AttentionRule

__all__ = ["AttentionRule", "NewTokens", "decode_attention", "prefill_attention"]
