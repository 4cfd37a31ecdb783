"""Dequantisation of packed weights."""

from pallas_kernels.dequantize.api import dequantize

__all__ = ["dequantize"]
