"""Operations on quantised matrices: dequantize, matmul, expert_matmul, take_rows.

Each takes implementation=None, "xla" or, where it has a kernel, "triton" or "native" (C++, on
CPUs). None tries them in the order that `kernels` says: one that cannot do a case raises
NotImplementedError with its reason and the next one is tried. What is wrong with the operands is a
ValueError with the numbers, raised while tracing.
"""

import functools

import jax
import jax.numpy as jnp

from rocmforge_jax.quant import kernels, native, word_packed, xla_columns, xla_rows
from rocmforge_jax.quant.layout import take_rows as take_packed_rows
from rocmforge_jax.quant.qtensor import QTensor, as_qtensor, value_of

_DECODE = {"columns": xla_columns.decode, "rows": xla_rows.decode, "groups": word_packed.decode}
_VALUE_DTYPES = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))


def dequantize(weight, dtype=jnp.float32, *, implementation: str | None = None) -> jax.Array:
    """The values of a QTensor or QParam, an array of `weight.shape`.

    In float32 equal to ggml's to the bit; bfloat16 and float16 are the rounding of those values.
    Jit it with its consumer, or alone: `jax.jit(dequantize)(w)`.
    """
    w, dtype = as_qtensor(weight), jnp.dtype(dtype)
    if dtype not in _VALUE_DTYPES:
        raise ValueError(f"dequantize gives float32, bfloat16 or float16, got {dtype}")
    stored = kernels.dispatch(
        {"triton": _dequantize_triton, "xla": _dequantize_xla}, implementation, w, dtype
    )
    swap = w.transposed != (w.layout == "columns")
    return jnp.swapaxes(stored, -1, -2) if swap else stored


def _dequantize_triton(w, dtype):
    if w.ndim != 2:
        raise NotImplementedError(f"the kernel takes a matrix, got {list(w.shape)}")
    return kernels.dequantize(w, dtype, kernels.target_of(w))


def _dequantize_xla(w, dtype):
    return _dequantize_stored(w.planes, w.type_name, w.layout, len(w.stored_shape) - 2).astype(
        dtype
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dequantize_stored(planes, type_name, layout, lead):
    """[..., N, K] for rows, [..., K, N] for columns."""
    fmt = QTensor(planes, type_name, layout).format

    def program(planes):
        return _DECODE[layout](planes, fmt)

    for _ in range(lead):
        program = jax.vmap(program)
    return program(planes)


def matmul(
    x,
    weight,
    *,
    dtype=None,
    activations: str = kernels.DEFAULT_MODE,
    implementation: str | None = None,
) -> jax.Array:
    """x [..., in] @ weight (in, out) -> [..., out] in `dtype` (default x's), accumulated in
    float32.

    weight: a QTensor, a QParam or an array. A quantised weight is never written out dense for up to
    eight rows of x. activations: what a kernel for few rows, or the products in C++, turn x into,
    "int16" (relative error 1e-4), "int8" (8e-3) or "float" (1e-6, which on CPUs is plain XLA's);
    plain XLA always computes with x itself. On GPUs few rows are up to 16, or up to 3 of bfloat16
    and float16: more go to the matrix units, for which the weight is rounded to x's type (2e-3,
    2e-4). Differentiable in x; the weight is a constant.
    """
    x, weight = jnp.asarray(x), value_of(weight)
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"matmul: x {list(x.shape)} @ weight {list(weight.shape)}: the last axis of x must be"
            " the first of a matrix"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"matmul: x must be floating point, got {x.dtype}")
    if implementation not in (None, "triton", "native", "xla"):
        raise ValueError(
            f"no implementation {implementation!r} here; there are triton, native, xla"
        )
    if not isinstance(weight, QTensor):
        return jnp.matmul(
            x, weight.astype(x.dtype), precision="highest", preferred_element_type=jnp.float32
        ).astype(dtype or x.dtype)
    dtype = jnp.dtype(dtype or x.dtype)
    products = {
        "triton": lambda x: _matmul(x, weight, activations, dtype),
        "native": lambda x: _matmul(x, weight, f"native {activations}", dtype),
        "xla": lambda x: _matmul(x, weight, "xla", dtype),
    }
    flat = kernels.dispatch(products, implementation, x.reshape(-1, x.shape[-1]))
    return flat.astype(dtype).reshape(*x.shape[:-1], weight.shape[-1])


def expert_matmul(
    x,
    weight,
    expert,
    *,
    dtype=None,
    activations: str = kernels.DEFAULT_MODE,
    implementation: str | None = None,
) -> jax.Array:
    """x [..., in] @ weight[expert] -> [..., out], for a stack of experts (E, in, out): a QTensor, a
    QParam or an array.

    expert: an integer scalar, traced or not; clipped to the stack. Only that expert's planes are
    read.
    """
    weight = value_of(weight)
    if weight.ndim != 3:
        raise ValueError(
            f"expert_matmul needs a stack (experts, in, out), got {list(weight.shape)}"
        )
    one = jax.tree.map(
        lambda stack: jax.lax.dynamic_index_in_dim(stack, expert, 0, keepdims=False), weight
    )
    return matmul(x, one, dtype=dtype, activations=activations, implementation=implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x, w, how, dtype):
    """x [M, in] @ w -> [M, out] in float32, or in `dtype` where that saves a pass.

    how: "xla", or the mode of a kernel's activations, after "native " for the products in C++.
    """
    if how == "xla":
        return _matmul_xla(x, w)
    if how.startswith("native "):
        return _matmul_native(x, w, how.removeprefix("native "))
    return _matmul_triton(x, w, how, dtype)


def _matmul_xla(x, w):
    module, x = (xla_columns, x.astype(jnp.float32)) if w.layout == "columns" else (xla_rows, x)
    return module.matmul(x, w) if w.transposed else module.matmul_transposed(x, w)


def _matmul_triton(x, w, mode, dtype):
    target = kernels.target_of(w, mode=mode)
    if w.transposed and 0 < x.shape[0] <= kernels.few_rows_limit(x.dtype):
        product = kernels.Product((kernels.as_weight(w),))
        return kernels.few_rows(x, [product], mode=mode, dtype=dtype, target=target)[0]
    if w.transposed and x.shape[0] <= kernels.PACKED_ROWS and x.dtype.itemsize == 2:
        return kernels.many_rows(x, w, target)
    # Behind a barrier: products of one x would be merged, which writes their dense weights out a
    # second time, side by side.
    x, dense_NK = jax.lax.optimization_barrier((x, kernels.dequantize(w, x.dtype, target)))
    dense = dense_NK.T if w.transposed else dense_NK
    # The matrix units sum in float32 whatever they give.
    given = x.dtype if x.dtype == dtype else jnp.float32
    return jnp.matmul(x, dense, precision="highest", preferred_element_type=given)


def _matmul_native(x, w, mode):
    native.require(w, mode=mode, rows=x.shape[0])
    return native.multiply(
        x, [kernels.Product((kernels.as_weight(w),))], mode=mode, dtype=jnp.float32
    )[0]


def _matmul_forward(x, w, how, dtype):
    return _matmul(x, w, how, dtype), (w, jnp.zeros((0,), x.dtype))


def _matmul_backward(how, dtype, residuals, gradient):
    w, like = residuals
    how = (
        "xla" if how.startswith("native ") else how
    )  # which multiplies with no weight as it is stored
    return _matmul(gradient, w.T, how, like.dtype).astype(like.dtype), None


_matmul.defvjp(_matmul_forward, _matmul_backward)


def take_rows(weight, ids, dtype=jnp.float32, *, implementation: str | None = None) -> jax.Array:
    """Rows of an embedding (V, D): integer ids [...] -> [..., D] in `dtype`.

    Ids are clipped to the table: check them first.
    """
    ids, weight = jnp.asarray(ids), value_of(weight)
    if weight.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"take_rows needs a matrix and integer ids, got {list(weight.shape)} and {ids.dtype}"
        )
    if implementation not in (None, "xla"):
        raise ValueError(f"no implementation {implementation!r} here; there are xla")
    if not isinstance(weight, QTensor):
        return jnp.take(weight, ids, axis=0, mode="clip").astype(dtype)
    if weight.transposed:
        raise ValueError(f"take_rows reads packed rows; {weight} is transposed: take its .T")
    return _take_packed(weight, ids.reshape(-1)).astype(dtype).reshape(*ids.shape, weight.shape[-1])


@jax.jit
def _take_packed(w, ids):
    """Rows [len(ids), K] of a stored [N, K] in float32."""
    values = _DECODE[w.layout](take_packed_rows(w.planes, w.format, w.layout, ids), w.format)
    return values.T if w.layout == "columns" else values


def validate_matmul_dims(expected_mkn, a_shape, b_shape, c_shape) -> None:
    """Check A [m, k] @ B [k, n] -> C [m, n]. ValueError names the operand and both shapes.

    Sizes are positive integers whose products fit 63 bits, so that no offset into an operand can
    wrap.
    """
    if len(expected_mkn) != 3:
        raise ValueError(f"expected (m, k, n), got {len(expected_mkn)} sizes: {list(expected_mkn)}")
    for name, size in zip("mkn", expected_mkn):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    m, k, n = expected_mkn
    for name, shape, expected in (
        ("A", a_shape, (m, k)),
        ("B", b_shape, (k, n)),
        ("C", c_shape, (m, n)),
    ):
        if tuple(shape) != expected:
            raise ValueError(f"{name} shape mismatch: expected {list(expected)}, got {list(shape)}")
        if expected[0] * expected[1] >= 2**63:
            raise ValueError(
                f"{name} is too large: {list(expected)} is {expected[0] * expected[1]} elements,"
                " the limit is 2**63 - 1"
            )
