"""The numerical settings of a model."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rocmforge_jax.arguments import shown
from rocmforge_jax.backends.choice import check_name

#: Formats of activations in products; `pallas_kernels.qmatmul.activations` describes them.
ACTIVATION_MODES = ("int16", "int8", "float")
_DTYPES = ("float32", "bfloat16", "float16")
#: Common abbreviations of dtypes.
_SHORT = {
    "f32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
}


def compute_dtype(dtype: Any, what: str = "a model computes in") -> jnp.dtype:
    """Converts a dtype or its name to a dtype in which a model can compute.

    Args:
        dtype: A name in upper or lower case, such as "bfloat16" or "bf16", or a dtype of NumPy or
            JAX.
        what: The beginning of the message.

    Raises:
        ValueError: Models do not compute in this dtype.
    """
    is_text = isinstance(dtype, str)
    try:
        found = jnp.dtype(_SHORT.get(dtype.lower(), dtype.lower()) if is_text else dtype)
    except TypeError:
        found = None
    if dtype is None or found is None or found.name not in _DTYPES:
        got = shown(dtype) if is_text or found is None else found.name
        raise ValueError(f"{what} {', '.join(_DTYPES)}, got {got}")
    return found


def of_cache(dtype: Any) -> jnp.dtype:
    """Converts the dtype of keys and values in caches, like `compute_dtype`."""
    return compute_dtype(dtype, "a cache holds")


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The numerical settings of layers. Hashable, because it is static metadata of every layer.

    Attributes:
        dtype: The dtype of activations between layers: float32, bfloat16 or float16.
        activations: The format of activations in products with packed weights, on GPUs (few rows)
            and in C++: "int16" (relative error 1e-4), "int8" (8e-3, as in llama.cpp) or "float".
        backend: "pallas", "cpp" or "xla" to use only that backend. "auto": the first backend that
            can compute an operation.
        cache_dtype: The dtype of keys and values in caches, by default `dtype`.
        mesh: The devices over which the model is split, with automatic axes; None for one device.

    Raises:
        ValueError: A value is not in these lists.
    """

    dtype: jnp.dtype = jnp.dtype("float32")
    activations: str = "int16"
    backend: str = "auto"
    cache_dtype: Any = None
    mesh: Mesh | None = None

    def __post_init__(self):
        object.__setattr__(self, "dtype", compute_dtype(self.dtype))
        cache_dtype = self.dtype if self.cache_dtype is None else self.cache_dtype
        object.__setattr__(self, "cache_dtype", of_cache(cache_dtype))
        object.__setattr__(self, "backend", check_name(self.backend))
        if self.activations not in ACTIVATION_MODES:
            raise ValueError(
                f"activations must be one of {', '.join(ACTIVATION_MODES)}, got"
                f" {shown(self.activations)}"
            )


#: The settings of layers that do not belong to a model.
DEFAULT = Numerics()
