"""The product of x with a dense weight, on every backend."""

import dataclasses

import jax
import jax.numpy as jnp

from rocmforge_jax.backends import Operation, choose, cpp, differentiable
from rocmforge_jax.backends.choice import check_name
from rocmforge_jax.backends.on_mesh import current_mesh
from rocmforge_jax.quant.multiply import check_shapes


def multiply(x, weight, *, transposed: bool, dtype=None, backend: str | None = None) -> jax.Array:
    """Computes x [..., in] @ weight -> [..., out] in `dtype`: see `quant.matmul`."""
    check_shapes(x, jax.ShapeDtypeStruct(weight.shape[:: -1 if transposed else 1], weight.dtype))
    flat = x.reshape(-1, x.shape[-1])
    # XLA divides products with dense weights among the devices of a mesh better than a custom call.
    takes = current_mesh() is None and cpp.takes_dense(flat.shape[0], weight)
    operation = MATMUL if takes else MATMUL_OF_XLA
    if choose(operation, (weight,), check_name(backend)).name == "cpp":
        y = differentiable(_Multiply(transposed), flat, weight)
    else:
        y = _by_xla(flat, weight, transposed)
    return y.astype(dtype or x.dtype).reshape(*x.shape[:-1], -1)


def _check_cpp(weight) -> str:
    return f"dense weight in {weight.dtype}, C++ with {cpp.instructions()}"


_NOTE = "the weight is not packed"
MATMUL = Operation("matmul", {"cpp": _check_cpp}, note=_NOTE)
#: For products of many rows with a weight in float32, for other dtypes and for meshes.
MATMUL_OF_XLA = Operation("matmul", note=_NOTE)


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The product in float32 as a function of arrays: in C++, and in plain XLA for gradients."""

    transposed: bool

    def __call__(self, x, weight):
        return cpp.multiply_dense(x, weight, transposed=self.transposed)

    def plain(self, x, weight):
        return _by_xla(x, weight, self.transposed)


def _by_xla(x, weight, transposed: bool):
    weight = (weight.T if transposed else weight).astype(x.dtype)
    return jnp.matmul(x, weight, precision="highest", preferred_element_type=jnp.float32)
