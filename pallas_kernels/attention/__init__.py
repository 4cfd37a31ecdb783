"""Attention over a key/value cache: one new token of each sequence (decode), or several (prefill)."""

from pallas_kernels.attention.api import decode_attention, prefill_attention

__all__ = ["decode_attention", "prefill_attention"]
