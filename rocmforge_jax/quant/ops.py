"""Operations on quantised matrices: dequantize, matmul, expert_matmul, take_rows.

Each takes implementation=None, "xla" or the name of another implementation. None tries them in order of preference: one that
cannot do a case raises NotImplementedError with its reason and the next one is tried. What is wrong with the operands is a
ValueError with the numbers, raised while tracing.
"""

import functools

import jax
import jax.numpy as jnp

from rocmforge_jax.quant import columns, rows
from rocmforge_jax.quant.layout import row_axis
from rocmforge_jax.quant.qtensor import QTensor, as_qtensor, value_of

_BY_LAYOUT = {"columns": columns, "rows": rows}
_VALUE_DTYPES = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))


def dequantize(weight, dtype=jnp.float32, *, implementation: str | None = None) -> jax.Array:
    """The values of a QTensor or QParam, an array of `weight.shape`.

    In float32 equal to ggml's to the bit; bfloat16 and float16 are the rounding of those values. Jit it with its consumer,
    or alone: `jax.jit(dequantize)(w)`.
    """
    w, dtype = as_qtensor(weight), jnp.dtype(dtype)
    if dtype not in _VALUE_DTYPES:
        raise ValueError(f"dequantize gives float32, bfloat16 or float16, got {dtype}")
    _choose({"xla": None}, implementation)
    stored = _dequantize_stored(w.planes, w.type_name, w.layout, len(w.stored_shape) - 2).astype(dtype)
    swap = w.transposed != (w.layout == "columns")
    return jnp.swapaxes(stored, -1, -2) if swap else stored


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _dequantize_stored(planes, type_name, layout, lead):
    """[..., N, K] for rows, [..., K, N] for columns."""
    fmt = QTensor(planes, type_name, layout).format
    program = lambda planes: _BY_LAYOUT[layout].decode(planes, fmt)
    for _ in range(lead):
        program = jax.vmap(program)
    return program(planes)


def matmul(x, weight, *, dtype=None, implementation: str | None = None) -> jax.Array:
    """x [..., in] @ weight (in, out) -> [..., out] in `dtype` (default x's), accumulated in float32.

    weight: a QTensor, a QParam or an array. A quantised weight is never written out dense for up to eight rows of x.
    Differentiable in x; the weight is a constant.
    """
    x, weight = jnp.asarray(x), value_of(weight)
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"matmul: x {list(x.shape)} @ weight {list(weight.shape)}: the last axis of x must be the first of a matrix")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"matmul: x must be floating point, got {x.dtype}")
    product = _choose({"xla": _matmul_xla}, implementation)
    if not isinstance(weight, QTensor):
        return jnp.matmul(x, weight.astype(x.dtype), precision="highest", preferred_element_type=jnp.float32).astype(dtype or x.dtype)
    flat = x.reshape(-1, x.shape[-1])
    return product(flat, weight).astype(dtype or x.dtype).reshape(*x.shape[:-1], weight.shape[-1])


def expert_matmul(x, weight, expert, *, dtype=None, implementation: str | None = None) -> jax.Array:
    """x [..., in] @ weight[expert] -> [..., out], for a stack of experts (E, in, out): a QTensor, a QParam or an array.

    expert: an integer scalar, traced or not; clipped to the stack. Only that expert's planes are read.
    """
    weight = value_of(weight)
    if weight.ndim != 3:
        raise ValueError(f"expert_matmul needs a stack (experts, in, out), got {list(weight.shape)}")
    one = jax.tree.map(lambda stack: jax.lax.dynamic_index_in_dim(stack, expert, 0, keepdims=False), weight)
    return matmul(x, one, dtype=dtype, implementation=implementation)


@jax.custom_vjp
def _matmul_xla(x, w):
    module = _BY_LAYOUT[w.layout]
    x = x.astype(jnp.float32) if w.layout == "columns" else x
    return module.matmul(x, w) if w.transposed else module.matmul_transposed(x, w)


def _matmul_forward(x, w):
    return _matmul_xla(x, w), (w, jnp.zeros((0,), x.dtype))


def _matmul_backward(residuals, gradient):
    w, like = residuals
    return _matmul_xla(gradient, w.T).astype(like.dtype), None


_matmul_xla.defvjp(_matmul_forward, _matmul_backward)


def take_rows(weight, ids, dtype=jnp.float32, *, implementation: str | None = None) -> jax.Array:
    """Rows of an embedding (V, D): integer ids [...] -> [..., D] in `dtype`. Ids are clipped to the table: check them first."""
    ids, weight = jnp.asarray(ids), value_of(weight)
    if weight.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"take_rows needs a matrix and integer ids, got {list(weight.shape)} and {ids.dtype}")
    _choose({"xla": None}, implementation)
    if not isinstance(weight, QTensor):
        return jnp.take(weight, ids, axis=0, mode="clip").astype(dtype)
    if weight.transposed:
        raise ValueError(f"take_rows reads packed rows; {weight} is transposed: take its .T")
    return _take_packed(weight, ids.reshape(-1)).astype(dtype).reshape(*ids.shape, weight.shape[-1])


@jax.jit
def _take_packed(w, ids):
    """Rows [len(ids), K] of a stored [N, K] in float32."""
    axes = {field.name: row_axis(len(field.shape), w.layout) for field in w.format.fields}
    planes = {name: jnp.take(plane, ids, axis=axes[name], mode="clip") for name, plane in w.planes.items()}
    values = _BY_LAYOUT[w.layout].decode(planes, w.format)
    return values.T if w.layout == "columns" else values


def _choose(implementations: dict, name: str | None):
    if name is None:
        return next(iter(implementations.values()))
    if name not in implementations:
        raise ValueError(f"no implementation {name!r} here; there are {', '.join(implementations)}")
    return implementations[name]


def validate_matmul_dims(expected_mkn, a_shape, b_shape, c_shape) -> None:
    """Check A [m, k] @ B [k, n] -> C [m, n]. ValueError names the operand and both shapes.

    Sizes are positive integers whose products fit 63 bits, so that no offset into an operand can wrap.
    """
    if len(expected_mkn) != 3:
        raise ValueError(f"expected (m, k, n), got {len(expected_mkn)} sizes: {list(expected_mkn)}")
    for name, size in zip("mkn", expected_mkn):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a positive integer, got {size!r}")
    m, k, n = expected_mkn
    for name, shape, expected in (("A", a_shape, (m, k)), ("B", b_shape, (k, n)), ("C", c_shape, (m, n))):
        if tuple(shape) != expected:
            raise ValueError(f"{name} shape mismatch: expected {list(expected)}, got {list(shape)}")
        if expected[0] * expected[1] >= 2**63:
            raise ValueError(f"{name} is too large: {list(expected)} is {expected[0] * expected[1]} elements, the limit is 2**63 - 1")
