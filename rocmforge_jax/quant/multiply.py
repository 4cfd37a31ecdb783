"""The product of x with one packed weight, on every backend."""

import contextlib
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import Product
from rocmforge_jax.backends import ACTIVATION_MODES, Operation, choose, cpp, linear, pallas
from rocmforge_jax.backends.on_mesh import on_mesh
from rocmforge_jax.quant import split, xla_columns, xla_rows
from rocmforge_jax.quant.split import Split


class PackedMatrix(Protocol):
    """The attributes of a `QTensor` that a product reads. `x @ w` calls this module."""

    @property
    def planes(self) -> dict[str, jax.Array]:
        """The arrays that hold the blocks."""
        ...

    @property
    def type_name(self) -> str:
        """The ggml type."""
        ...

    @property
    def layout(self) -> str:
        """The layout of the planes: see `quant.layout`."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the matrix is seen as (in, out) instead of as it is stored."""
        ...

    @property
    def packing(self) -> Packing:
        """The kernels' description of the planes in layout "groups"."""
        ...

    @property
    def split(self) -> Split | None:
        """How the devices of a mesh share the matrix; None for one device."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(in, out)."""
        ...

    @property
    def ndim(self) -> int:
        """2 for a matrix."""
        ...

    @property
    def T(self) -> "PackedMatrix":
        """The same planes seen with the axes swapped."""
        ...


def multiply(
    x, weight: PackedMatrix, *, dtype=None, activations: str = "int16", backend: str | None = None
) -> jax.Array:
    """Computes x [..., in] @ weight (in, out) -> [..., out] in `dtype`: see `quant.matmul`."""
    x = jnp.asarray(x)
    check_shapes(x, weight)
    dtype = jnp.dtype(dtype or x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    operands = flat.shape[0], flat.dtype, weight, activations
    with contextlib.nullcontext() if weight.split is None else on_mesh(None):
        backend = choose(MATMUL, operands, backend).name
    planes, structure = jax.tree.flatten(weight)
    batch = 0 if weight.split is None or x.ndim < 2 else x.shape[0]
    y = linear(_Multiply(structure, backend, activations, dtype, batch), flat, planes)
    return y.astype(dtype).reshape(*x.shape[:-1], weight.shape[-1])


def check_shapes(x, weight) -> None:
    """Raises ValueError unless x is floating point and fits the matrix `weight`."""
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"matmul: x {list(x.shape)} @ weight {list(weight.shape)}: the last axis of x must be"
            " the first of a matrix"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"matmul: x must be floating point, got {x.dtype}")


def require_pallas(weight: PackedMatrix, mode: str) -> str:
    """Returns the target of the kernels for a weight; raises an error if none supports it."""
    on = pallas.target()
    _require_groups(weight)
    check_mode(mode)
    pallas.require_weight(weight, mode)
    return str(on)


def require_cpp(weight: PackedMatrix, mode: str) -> str:
    """Returns the instruction set of C++ for a weight; raises an error if C++ lacks support."""
    used = cpp.instructions()
    check_mode(mode)
    cpp.require_mode(mode)
    _require_groups(weight)
    require_transposed(weight)
    cpp.require_packing(weight.packing, mode)
    return used


def require_whole(weight: PackedMatrix) -> None:
    """Raises NotImplementedError for a weight that several devices share."""
    if weight.split is not None:
        raise NotImplementedError(
            f"the weights are split over {weight.split.mesh.size} devices: one product at a time"
        )


def require_transposed(weight: PackedMatrix) -> None:
    """Raises NotImplementedError unless the weight is the transpose of the stored matrix."""
    if not weight.transposed:
        raise NotImplementedError(
            "the weight is seen as it is stored, and kernels multiply with its transpose"
        )


def check_mode(mode: str) -> None:
    """Raises ValueError for a mode of activations that does not exist."""
    if mode not in ACTIVATION_MODES:
        raise ValueError(f"activations must be one of {', '.join(ACTIVATION_MODES)}, got {mode!r}")


def _require_groups(weight):
    if weight.layout != "groups":
        raise NotImplementedError(
            f"{weight.type_name} planes lie in {weight.layout}, and kernels read groups"
        )


#: What the kernels do, by the name that `_kernel_of` gives them.
_KERNELS = {
    "gemv": "packed weight, {mode} activations",
    "skinny_gemm": "packed weight, on the matrix units",
    "dequantize": "dequantised, then XLA's product",
}


def _kernel_of(rows: int, dtype, weight) -> str:
    """Returns the name of the kernel. A weight that is not transposed is always dequantised."""
    return pallas.kernel_of_product(rows, dtype) if weight.transposed else "dequantize"


def _check_pallas(rows, dtype, weight, mode) -> str:
    on = require_pallas(weight, mode)
    return f"{_KERNELS[_kernel_of(rows, dtype, weight)].format(mode=mode)}, {on}"


def _check_cpp(rows, dtype, weight, mode) -> str:
    used = require_cpp(weight, mode)
    if not rows:
        raise NotImplementedError("there is no row to multiply")
    return f"packed weight, {mode} activations, C++ with {used}"


MATMUL = Operation("matmul", {"pallas": _check_pallas, "cpp": _check_cpp})


@dataclasses.dataclass(frozen=True)
class _Multiply:
    """The product x [M, in] @ w -> [M, out] with a packed weight, as a function of its planes.

    Attributes:
        structure: The pytree of the weight.
        backend: The backend that computes the product.
        activations: The mode of activations.
        dtype: The dtype of the result.
        batch: The number of sequences in the rows of x, for a weight that is split; else 0.
        casts: Whether the result always has `dtype`. Otherwise it may come in float32.
    """

    structure: Any
    backend: str
    activations: str
    dtype: jnp.dtype
    batch: int
    casts: bool = False

    def __call__(self, x, *planes):
        w = jax.tree.unflatten(self.structure, planes)
        if w.split is None:
            y = self._product(x, w)
        else:
            # The devices' shares of a sum are not rounded before they are added.
            wide = dataclasses.replace(self, dtype=jnp.dtype("float32"))
            y = split.product(wide._product, x, w, self.batch)
        return y.astype(self.dtype) if self.casts else y

    def _product(self, x, w) -> Any:
        if self.backend == "pallas":
            return _by_pallas(x, w, self)
        if self.backend == "cpp":
            return _by_cpp(x, w, self)
        return _by_xla(x, w)

    def transposed(self, dtype) -> "_Multiply":
        """Returns the product with the transposed weight, which computes cotangents of x."""
        # C++ only multiplies with the transpose of the stored matrix.
        backend = "xla" if self.backend == "cpp" else self.backend
        weight = jax.tree.unflatten(self.structure, range(self.structure.num_leaves))
        structure = jax.tree.structure(weight.T)
        return dataclasses.replace(
            self, structure=structure, backend=backend, dtype=jnp.dtype(dtype), casts=True
        )


def _by_xla(x, w):
    module, x = (xla_columns, x.astype(jnp.float32)) if w.layout == "columns" else (xla_rows, x)
    return module.matmul(x, w) if w.transposed else module.matmul_transposed(x, w)


def _by_pallas(x, w, how):
    kernel = _kernel_of(x.shape[0], x.dtype, w)
    if kernel == "gemv":
        return pallas.gemv(x, [Product((w,))], mode=how.activations, dtype=how.dtype)[0]
    if kernel == "skinny_gemm":
        return pallas.skinny_gemm(x, [Product((w,))], dtype=how.dtype)[0]
    # Without the barrier, XLA would merge the products of one x. For that, it would first
    # concatenate their dense weights in memory.
    x, dense_NK = jax.lax.optimization_barrier((x, pallas.dequantize(w, x.dtype)))
    dense = dense_NK.T if w.transposed else dense_NK
    # The matrix units sum in float32, whatever they return.
    returned = x.dtype if x.dtype == how.dtype else jnp.float32
    return jnp.matmul(x, dense, precision="highest", preferred_element_type=returned)


def _by_cpp(x, w, how):
    return cpp.multiply(x, [Product((w,))], mode=how.activations, dtype=jnp.float32)[0]
