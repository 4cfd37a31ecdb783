"""Values of packed planes."""

from pallas_kernels.dequantize.api import dequantize

__all__ = ["dequantize"]
