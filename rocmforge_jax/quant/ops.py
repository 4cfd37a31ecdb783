"""Operations on quantised matrices: dequantize, matmul, expert_matmul, take_rows.

Each takes backend=None, "pallas", "cpp" or "xla". None takes the first that can, as
`backends.choose` says. Wrong operands are a ValueError with the numbers, raised while tracing.
"""

import functools

import jax
import jax.numpy as jnp

from rocmforge_jax.arguments import integer
from rocmforge_jax.backends import DEFAULT, Operation, choose, pallas
from rocmforge_jax.quant import dense, split, word_packed, xla_columns, xla_rows
from rocmforge_jax.quant.layout import take_rows as take_packed_rows
from rocmforge_jax.quant.multiply import multiply, require_pallas
from rocmforge_jax.quant.qtensor import QTensor, as_qtensor, value_of

_DECODE = {"columns": xla_columns.decode, "rows": xla_rows.decode, "groups": word_packed.decode}
_VALUE_DTYPES = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))


def dequantize(weight, dtype=jnp.float32, *, backend: str | None = None) -> jax.Array:
    """Returns the values of a QTensor or QParam, an array of `weight.shape`.

    float32 values equal ggml's to the bit; bfloat16 and float16 are the rounding of those. Jit it
    with its consumer, or alone: `jax.jit(dequantize)(w)`.
    """
    w, dtype = as_qtensor(weight), jnp.dtype(dtype)
    if dtype not in _VALUE_DTYPES:
        raise ValueError(f"dequantize gives float32, bfloat16 or float16, got {dtype}")
    choice = choose(DEQUANTIZE, (w,), backend)
    stored = pallas.dequantize(w, dtype) if choice.name == "pallas" else _by_xla(w).astype(dtype)
    swap = w.transposed != (w.layout == "columns")
    return jnp.swapaxes(stored, -1, -2) if swap else stored


def _check_dequantize(w) -> str:
    if w.split is not None:
        raise NotImplementedError(f"the weight is split over {w.split.mesh.size} devices")
    on = require_pallas(w, DEFAULT.activations)
    if w.ndim != 2:
        raise NotImplementedError(f"the kernel takes a matrix, got {list(w.shape)}")
    return f"one pass over the planes, {on}"


DEQUANTIZE = Operation("dequantize", {"pallas": _check_dequantize})


def _by_xla(w):
    return _dequantize_stored(w.planes, w.type_name, w.layout, len(w.stored_shape) - 2, w.padding)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _dequantize_stored(planes, type_name, layout, lead, padding):
    """Returns [..., N, K] for rows and groups, [..., K, N] for columns."""
    fmt = QTensor(planes, type_name, layout).format
    planes = word_packed.without_padding(planes, padding)

    def program(planes):
        return _DECODE[layout](planes, fmt)

    for _ in range(lead):
        program = jax.vmap(program)
    return program(planes)


def matmul(
    x,
    weight,
    *,
    transposed: bool = False,
    dtype=None,
    activations: str = DEFAULT.activations,
    backend: str | None = None,
) -> jax.Array:
    """Computes x [..., in] @ weight (in, out) -> [..., out], accumulated in float32.

    A quantised weight is never written out dense for up to eight rows of x. Differentiable in x;
    a quantised weight is a constant.

    Args:
        x: Floating point.
        weight: A QTensor, a QParam or an array.
        transposed: Whether the weight is (out, in), like the table of an embedding.
        dtype: Of the result, default x's.
        activations: What the kernel for few rows, and C++, turn x into: "int16" (relative error
            1e-4), "int8" (8e-3) or "float" (1e-6; on CPUs plain XLA computes it). On GPUs few rows
            are up to 16, or up to 3 of bfloat16 and float16. More rows go to the matrix units, for
            which the weight is rounded to x's type (2e-3, 2e-4). Plain XLA computes with x itself;
            it rounds a dense weight to x's type, and C++ does not.
        backend: The one to use, default the first that can.
    """
    x, weight = jnp.asarray(x), value_of(weight)
    if isinstance(weight, QTensor):
        packed = weight.T if transposed else weight
        return multiply(x, packed, dtype=dtype, activations=activations, backend=backend)
    return dense.multiply(x, weight, transposed=transposed, dtype=dtype, backend=backend)


def expert_matmul(
    x,
    weight,
    expert,
    *,
    dtype=None,
    activations: str = DEFAULT.activations,
    backend: str | None = None,
) -> jax.Array:
    """Computes x [..., in] @ weight[expert] -> [..., out], for a stack of experts (E, in, out).

    Only that expert's planes are read.

    Args:
        x: Floating point.
        weight: A QTensor, a QParam or an array.
        expert: An integer scalar, traced or not; clipped to the stack.
        dtype: As for `matmul`.
        activations: As for `matmul`.
        backend: As for `matmul`.
    """
    weight = value_of(weight)
    if weight.ndim != 3:
        raise ValueError(
            f"expert_matmul needs a stack (experts, in, out), got {list(weight.shape)}"
        )

    def one(stack):
        return jax.lax.dynamic_index_in_dim(stack, expert, 0, keepdims=False)

    chosen = jax.tree.map(one, weight)
    return matmul(x, chosen, dtype=dtype, activations=activations, backend=backend)


def take_rows(weight, ids, dtype=jnp.float32, *, backend: str | None = None) -> jax.Array:
    """Returns rows of an embedding (V, D) for integer ids [...] -> [..., D] in `dtype`.

    Ids are clipped to the table, so check them first.
    """
    ids, weight = jnp.asarray(ids), value_of(weight)
    if weight.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(
            f"take_rows needs a matrix and integer ids, got {list(weight.shape)} and {ids.dtype}"
        )
    choose(TAKE_ROWS, (weight,), backend)
    if not isinstance(weight, QTensor):
        return jnp.take(weight, ids, axis=0, mode="clip").astype(dtype)
    if weight.transposed:
        raise ValueError(f"take_rows reads packed rows; {weight} is transposed: take its .T")
    if weight.split is not None:
        return split.take_rows(_take_packed, weight, ids).astype(dtype)
    taken = _take_packed(weight, ids.reshape(-1)).astype(dtype)
    return taken.reshape(*ids.shape, weight.shape[-1])


TAKE_ROWS = Operation("take_rows", note="only the rows that are taken are decoded")


@jax.jit
def _take_packed(w, ids):
    """Returns rows [len(ids), K] of a stored [N, K] in float32."""
    planes = take_packed_rows(w.planes, w.format, w.layout, ids)
    planes = word_packed.without_padding(planes, w.padding)
    values = _DECODE[w.layout](planes, w.format)
    return values.T if w.layout == "columns" else values


def validate_matmul_dims(expected_mkn, a_shape, b_shape, c_shape) -> None:
    """Checks A [m, k] @ B [k, n] -> C [m, n].

    Sizes are positive integers whose products fit 63 bits, so that no offset into an operand can
    wrap. Raises ValueError, which names the operand and both shapes.
    """
    if len(expected_mkn) != 3:
        raise ValueError(f"expected (m, k, n), got {len(expected_mkn)} sizes: {list(expected_mkn)}")
    m, k, n = (integer(name, size, 1) for name, size in zip("mkn", expected_mkn))
    operands = ("A", a_shape, (m, k)), ("B", b_shape, (k, n)), ("C", c_shape, (m, n))
    for name, shape, expected in operands:
        if tuple(shape) != expected:
            raise ValueError(f"{name} shape mismatch: expected {list(expected)}, got {list(shape)}")
        if (elements := expected[0] * expected[1]) >= 2**63:
            raise ValueError(
                f"{name} is too large: {list(expected)} is {elements} elements, the limit is"
                " 2**63 - 1"
            )
