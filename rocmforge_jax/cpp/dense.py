"""Products with a dense weight on a CPU: `dense.cc` in JAX.

Plain XLA converts a weight of 16-bit numbers to float32 in memory, before each product. C++
converts the numbers as it reads them. The functions call the library that `library.load` loaded.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax.cpp import partition

#: Dtype of a weight -> the most rows of x for which C++ is faster than XLA; None: any number.
MOST_ROWS = {"float32": 8, "float16": None, "bfloat16": None}


def takes(rows: int, weight) -> bool:
    """Returns whether C++ is the one to multiply so many rows of x with a weight."""
    if weight.dtype.name not in MOST_ROWS or 0 in weight.shape:
        return False
    most = MOST_ROWS[weight.dtype.name]
    return surely(lambda: rows > 0 and (most is None or rows <= most))


def multiply(x_MK, weight, *, transposed: bool = False) -> jax.Array:
    """Computes x @ weight in float32, without rounding the weight.

    Args:
        x_MK: The input.
        weight: (K, N), or (N, K) if `transposed`, of a dtype in MOST_ROWS.
        transposed: Whether the outputs are the first axis of the weight.

    Returns:
        float32 [M, N].

    Raises:
        NotImplementedError: The dtype of the weight is not supported.
        ValueError: The shapes do not fit together, or are empty.
    """
    if weight.dtype.name not in MOST_ROWS:
        raise NotImplementedError(f"a dense weight in {weight.dtype}, not {', '.join(MOST_ROWS)}")
    inputs = weight.shape[1 if transposed else 0] if weight.ndim == 2 else None
    if x_MK.ndim != 2 or x_MK.shape[1] != inputs or 0 in (*x_MK.shape, *weight.shape):
        raise ValueError(
            f"x has shape {list(x_MK.shape)}, the weight {list(weight.shape)}: expected [M, K] and"
            f" {'[N, K]' if transposed else '[K, N]'}, with M, K and N at least 1"
        )
    operands, names = [x_MK.astype(jnp.float32), weight], "n K" if transposed else "K n"
    return partition.call(_Call(transposed), operands, ["m K", names], ["m n"])[0]


@dataclasses.dataclass(frozen=True)
class _Call:
    """The call of the library as a function of its arrays."""

    transposed: bool

    def __call__(self, x_MK, weight) -> list[jax.Array]:
        N = weight.shape[0 if self.transposed else 1]
        out = jax.ShapeDtypeStruct((x_MK.shape[0], N), jnp.float32)
        call = jax.ffi.ffi_call("rocmforge_multiply_dense", out)
        return [call(x_MK, weight, transposed=np.bool_(self.transposed))]
