"""Products with packed weights: GEMV for a few rows of activations, skinny GEMM for tens."""

from pallas_kernels.qmatmul.activations import MODES, Activations, quantize
from pallas_kernels.qmatmul.api import GEMV_ROWS, check_offsets, multiply, multiply_skinny
from pallas_kernels.qmatmul.blocks import rows_of_an_expert
from pallas_kernels.qmatmul.codes import is_exact_in_bfloat16
from pallas_kernels.qmatmul.product import Product, Weight

__all__ = [
    "GEMV_ROWS",
    "MODES",
    "Activations",
    "Product",
    "Weight",
    "check_offsets",
    "multiply",
    "is_exact_in_bfloat16",
    "multiply_skinny",
    "quantize",
    "rows_of_an_expert",
]
