"""Arrays that stay quantised on the device: `QTensor`, the variable `QParam`, and what can be done with them."""

from rocmforge_jax.quant.kernels import DEFAULT_MODE
from rocmforge_jax.quant.layout import default_layout
from rocmforge_jax.quant.ops import dequantize, expert_matmul, matmul, take_rows, validate_matmul_dims
from rocmforge_jax.quant.qtensor import QParam, QTensor

__all__ = [
    "DEFAULT_MODE",
    "QParam",
    "QTensor",
    "default_layout",
    "dequantize",
    "expert_matmul",
    "matmul",
    "take_rows",
    "validate_matmul_dims",
]
