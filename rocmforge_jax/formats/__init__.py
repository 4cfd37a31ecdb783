"""The block formats of tensor data: one declaration per ggml type.

This package does not read files. It imports JAX on first use.
"""

from rocmforge_jax.formats.format import Affine, Field, Format
from rocmforge_jax.formats.packing import Codes, WordPacking
from rocmforge_jax.formats.quantizers import quantize
from rocmforge_jax.formats.registry import FORMATS, REMOVED_IDS, get, register, unregister

TYPE_CHECKING = False

if TYPE_CHECKING:  # for type checkers and editors; `__getattr__` imports it at run time
    from rocmforge_jax.formats.blocks import dequantize as dequantize


def __getattr__(name):
    if name == "dequantize":
        from rocmforge_jax.formats.blocks import dequantize

        return dequantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FORMATS",
    "REMOVED_IDS",
    "Affine",
    "Codes",
    "Field",
    "Format",
    "WordPacking",
    "dequantize",
    "get",
    "quantize",
    "register",
    "unregister",
]
