"""Attention over a KV cache, for one or several new tokens of each sequence."""

from pallas_kernels.attention.api import decode_attention, prefill_attention
from pallas_kernels.attention.decode import NewTokens
from pallas_kernels.attention.rule import AttentionRule

__all__ = ["AttentionRule", "NewTokens", "decode_attention", "prefill_attention"]
