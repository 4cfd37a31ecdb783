"""Arrays that stay quantised on the device: `QTensor`, `QParam`, and operations on them.

Names are imported when they are first used: `ahead` reads weights while flax, which most of them
need, is being imported.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` imports, for type checkers and editors
    from rocmforge_jax.quant.ops import dequantize as dequantize
    from rocmforge_jax.quant.ops import expert_matmul as expert_matmul
    from rocmforge_jax.quant.ops import matmul as matmul
    from rocmforge_jax.quant.ops import take_rows as take_rows
    from rocmforge_jax.quant.ops import validate_matmul_dims as validate_matmul_dims
    from rocmforge_jax.quant.overview import readable as readable
    from rocmforge_jax.quant.pack import quantize as quantize
    from rocmforge_jax.quant.placement import default_layout as default_layout
    from rocmforge_jax.quant.qtensor import QParam as QParam
    from rocmforge_jax.quant.qtensor import QTensor as QTensor

_WHERE = {
    "QParam": "qtensor",
    "QTensor": "qtensor",
    "default_layout": "placement",
    "dequantize": "ops",
    "expert_matmul": "ops",
    "matmul": "ops",
    "quantize": "pack",
    "readable": "overview",
    "take_rows": "ops",
    "validate_matmul_dims": "ops",
}
__all__ = list(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    return globals()[name]


def __dir__():
    return sorted(__all__)
