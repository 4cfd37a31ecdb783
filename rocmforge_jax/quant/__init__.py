"""Arrays that stay quantised on the device: `QTensor`, `QParam`, and operations on them.

Names are imported when they are first used: `ahead` reads weights while flax, which most of them
need, is being imported.
"""

import importlib

_WHERE = {
    "QParam": "qtensor",
    "QTensor": "qtensor",
    "default_layout": "placement",
    "dequantize": "ops",
    "expert_matmul": "ops",
    "matmul": "ops",
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
