"""The kernels of `pallas_kernels` as implementations: which one runs, and whether it works on this
device.

ROCMFORGE_KERNELS is read when an operation is traced: "auto" (kernels where there are some, else
plain XLA), "triton" or "native" (a product, or what else that has, without a kernel is an error) or
"xla" (no kernels). Before a kernel is used on a device it has computed a small product there that
was compared with plain XLA's. One that failed is named in a warning, once, and its work is XLA's.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dequantize as dequantize_kernel
from pallas_kernels import samples, targets
from pallas_kernels.dequantize import reference as dequantize_reference
from pallas_kernels.qmatmul import (
    GEMV_ROWS,
    Product,
    Weight,
    check_offsets,
    multiply,
    multiply_skinny,
)
from pallas_kernels.targets import Target
from rocmforge_jax.quant import trials, word_packed
from rocmforge_jax.quant.qtensor import QTensor
from rocmforge_jax.settings import kernel_order

#: How activations meet packed weights in kernels (`pallas_kernels.qmatmul.activations`), and the
#: mode where nobody says.
MODES, DEFAULT_MODE = ("int16", "int8", "float"), "int16"
#: Largest relative error of a kernel that works, by mode.
_ERRORS = {"int16": 1e-4, "int8": 2e-2, "float": 2e-6}
#: Rows of a narrow float type from which on the matrix units multiply, and up to which they take
#: the weight packed. Measured on an H100, Q4_0, 14336 x 4096: 12 us for one row, 21 us for 4 to 16
#: rows on the matrix units.
MATRIX_ROWS, PACKED_ROWS = 4, 64


def dispatch(implementations: dict, name: str | None, *args, **kwargs):
    """Call the implementation of a name, or with None the first one in `kernel_order` that does not
    raise NotImplementedError.

    ValueError: a name that is none of them. NotImplementedError: none can, with the reasons.
    """
    if name is not None and name not in implementations:
        raise ValueError(f"no implementation {name!r} here; there are {', '.join(implementations)}")
    reasons = []
    names = kernel_order() if name is None else (name,)
    for each in [each for each in names if each in implementations] or [
        "xla"
    ]:  # "native" has no dequantisation, say
        try:
            return implementations[each](*args, **kwargs)
        except NotImplementedError as reason:
            reasons.append(f"{each}: {reason}")
    raise NotImplementedError("; ".join(reasons))


def dispatch_fused(implementations: dict, name: str | None, otherwise, *args):
    """As `dispatch`, of what does the work of several operations at once.

    Where none can, `otherwise(*args)`, which does one by one.
    """
    for each in kernel_order() if name is None else (name,):
        try:
            if each in implementations:
                return implementations[each](*args)
        except NotImplementedError:
            pass
    return otherwise(*args)


def current_target() -> Target:
    """What kernels are compiled for here. NotImplementedError without a GPU."""
    target = targets.current()
    if target is None:
        raise NotImplementedError(f"there are kernels for GPUs, this is a {jax.default_backend()}")
    return target


def target_of(*weights, mode: str = DEFAULT_MODE) -> Target:
    """What to compile the kernels of these weights for.

    NotImplementedError, with the reason, where there are none.
    """
    if mode not in MODES:
        raise ValueError(f"activations are one of {', '.join(MODES)}, got {mode!r}")
    target = current_target()
    for weight in weights:
        if not isinstance(weight, QTensor):
            raise NotImplementedError("the weight is not packed")
        if weight.layout != "groups":
            raise NotImplementedError(
                f"{weight.type_name} planes lie in {weight.layout}, kernels read groups"
            )
        packing = word_packed.packing(weight.format)
        name = f"the kernel for {weight.type_name} and {mode} activations"
        trials.require_working(
            name, target, functools.partial(_error, packing, mode, target), _ERRORS[mode]
        )
        check_offsets(weight.planes)
    return target


def few_rows_limit(dtype) -> int:
    """Rows of activations up to which the kernel for few rows is used: all it can where activations
    are float32, whose precision the matrix units do not keep.
    """
    return GEMV_ROWS if jnp.dtype(dtype).itemsize > 2 else MATRIX_ROWS - 1


def as_weight(weight: QTensor) -> Weight:
    return Weight(weight.planes, word_packed.packing(weight.format))


def few_rows(
    x, products: list[Product], *, mode: str, dtype, target: Target, norm=None, epsilon: float = 0.0
) -> list:
    """`pallas_kernels.qmatmul.api.multiply`, traced once for all layers of the same shapes."""
    return _few_rows(x, products, norm, mode, jnp.dtype(dtype), target, epsilon)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _few_rows(x, products, norm, mode, dtype, target, epsilon):
    return multiply(x, products, mode=mode, dtype=dtype, target=target, norm=norm, epsilon=epsilon)


def many_rows(x_MK, weight: QTensor, target: Target, experts=None) -> jax.Array:
    """x [M, K], bfloat16 or float16, times a weight's stored [N, K] -> float32 [M, N].

    experts: for a stack, as the kernel takes them.
    """
    return _many_rows(x_MK, weight.planes, word_packed.packing(weight.format), target, experts)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _many_rows(x_MK, planes, packing, target, experts=None):
    return multiply_skinny(x_MK, Weight(planes, packing), target=target, experts=experts)


def dequantize(weight: QTensor, dtype, target: Target) -> jax.Array:
    """The stored matrix [N, K] of a weight in `dtype`."""
    return _dequantize(weight.planes, word_packed.packing(weight.format), jnp.dtype(dtype), target)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dequantize(planes, packing, dtype, target):
    return dequantize_kernel.dequantize(planes, packing, dtype, target=target)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable(kernel, *operands):
    """kernel(*operands), with the gradient of kernel.plain, which computes the same.

    kernel: hashable by what it computes.
    """
    return kernel(*operands)


def _backward(kernel, operands, gradients):
    return jax.vjp(kernel.plain, *operands)[1](gradients)


differentiable.defvjp(lambda kernel, *operands: (kernel(*operands), operands), _backward)


def _error(packing, mode, target) -> jax.Array:
    """Largest relative error of the kernels on a small random matrix."""
    weight, x = _sample(packing)
    dense = dequantize_reference.dequantize(weight, packing)
    y = _few_rows(
        x, [Product((Weight(weight, packing),))], None, mode, jnp.dtype("float32"), target, 0.0
    )[0]
    exact = jnp.dot(x, dense.T, precision="highest")
    values = _dequantize(weight, packing, jnp.dtype("float32"), target)
    narrow = x.astype(jnp.bfloat16)
    rounded = _many_rows(narrow, weight, packing, target) - jnp.dot(
        narrow.astype(jnp.float32), dense.T, precision="highest"
    )
    norm = jnp.linalg.norm(exact)
    others_work = (values == dense).all() & (jnp.linalg.norm(rounded) < 1e-2 * norm)
    return jnp.where(others_work, jnp.linalg.norm(y - exact) / norm, jnp.inf)


@functools.partial(jax.jit, static_argnums=0)
def _sample(packing):
    return samples.random_planes(jax.random.key(0), packing, 72, 40), jax.random.normal(
        jax.random.key(1), (2, 40 * 32), jnp.float32
    )
