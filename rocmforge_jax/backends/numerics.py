"""How a model computes, as one value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from rocmforge_jax.arguments import shown
from rocmforge_jax.backends.choice import check_name

#: What integer products turn activations into; `pallas_kernels.qmatmul.activations` has the facts.
ACTIVATION_MODES = ("int16", "int8", "float")
_DTYPES = ("float32", "bfloat16", "float16")
#: Usual short name -> dtype.
_SHORT = {
    "f32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
}


def compute_dtype(dtype: Any, what: str = "a model computes in") -> jnp.dtype:
    """Returns a dtype in which a model can compute; raises ValueError for others.

    Args:
        dtype: As text in any case, such as "bfloat16" or "bf16", or a dtype of NumPy or JAX.
        what: How the message begins.
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
    """Returns a dtype in which caches hold keys and values: see `compute_dtype`."""
    return compute_dtype(dtype, "a cache holds")


@dataclasses.dataclass(frozen=True)
class Numerics:
    """How the layers of a model compute. Hashable: it is static metadata of every layer.

    Attributes:
        dtype: Of activations between layers: float32, bfloat16 or float16.
        activations: What products with packed weights turn activations into on GPUs (few rows) and
            in C++: "int16" (relative error 1e-4), "int8" (8e-3, as in llama.cpp) or "float".
        backend: "pallas", "cpp" or "xla" for that backend alone, "auto" for the first that can.
        cache_dtype: Of the keys and values in caches: one of those of `dtype`, which is the
            default.
        mesh: The devices that the model is split over, with automatic axes, or None for one.

    Raises:
        ValueError: A value is none of these.
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


#: Of layers that stand alone.
DEFAULT = Numerics()
