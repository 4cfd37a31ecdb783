"""The product of x with a dense weight, on every backend."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from rocmforge_jax.backends import Operation, choose, cpp, differentiable
from rocmforge_jax.backends.choice import check_name
from rocmforge_jax.backends.explicit_axes import explicit_mesh
from rocmforge_jax.backends.on_mesh import current_mesh
from rocmforge_jax.quant.multiply import check_shapes


def multiply(x, weight, *, transposed: bool, dtype=None, backend: str | None = None) -> jax.Array:
    """Computes x [..., in] @ weight -> [..., out] in `dtype`: see `quant.matmul`."""
    shape = weight.shape[::-1] if transposed else weight.shape
    check_shapes(x, jax.ShapeDtypeStruct(shape, weight.dtype))
    (K, N), rows = shape, math.prod(x.shape[:-1])
    takes = cpp.takes_dense(rows, weight) and not _is_divided(x, weight)
    operation = MATMUL if takes else MATMUL_OF_XLA
    if choose(operation, (weight,), check_name(backend)).name == "cpp":
        y = differentiable(_Multiply(transposed), x.reshape(rows, K), weight)
        y = y.reshape(*x.shape[:-1], N)
    else:
        y = _by_xla(x, weight, transposed)
    return y.astype(dtype or x.dtype)


def _is_divided(x, weight) -> bool:
    """Returns whether several devices certainly share the product.

    XLA divides it better than a custom call. Inside of `jax.shard_map` and on meshes with explicit
    axes, a custom call would also lose the sharding in the type of its result.
    """
    in_shard_map = AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types
    return current_mesh() is not None or in_shard_map or explicit_mesh((x, weight)) is not None


def _check_cpp(weight) -> str:
    return f"dense weight in {weight.dtype}, C++ with {cpp.instructions()}"


_NOTE = "the weight is not packed"
MATMUL = Operation("matmul", {"cpp": _check_cpp}, note=_NOTE)
#: For products of many rows with a weight in float32, for other dtypes and for several devices.
MATMUL_OF_XLA = Operation("matmul", note=_NOTE)


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The product in float32 as a function of arrays: in C++, and in plain XLA for gradients."""

    transposed: bool

    def __call__(self, x, weight):
        return _by_cpp(self.transposed)(x, weight)

    def plain(self, x, weight):
        return _by_xla(x, weight, self.transposed)


@functools.cache
def _by_cpp(transposed: bool):
    """Makes the product in C++. Mapped over rows of x alone, it is one product of all rows."""

    @jax.custom_batching.custom_vmap
    def product(x, weight):
        return cpp.multiply_dense(x, weight, transposed=transposed)

    @product.def_vmap
    def mapped(size, is_mapped, x, weight):
        if is_mapped[1]:  # each row has its own weight
            by_xla = functools.partial(_by_xla, transposed=transposed)
            return jax.vmap(by_xla, [0 if axis else None for axis in is_mapped])(x, weight), True
        return multiply(x, weight, transposed=transposed, dtype=jnp.float32), True

    return product


def _by_xla(x, weight, transposed: bool):
    weight, dtype = weight.T if transposed else weight, x.dtype
    if jax.default_backend() == "cpu" and weight.dtype != dtype:
        dtype = jnp.float32  # rounds neither, as C++ does for the numbers of rows that it takes
    x, weight = x.astype(dtype), weight.astype(dtype)
    return jnp.matmul(x, weight, precision="highest", preferred_element_type=jnp.float32)
