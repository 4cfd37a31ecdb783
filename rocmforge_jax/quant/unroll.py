"""One block's program, written out element by element.

A format declares what ONE block means as operations on small arrays. XLA:CPU turns such a program,
vectorised over the columns of a matrix, into loops over the elements of a block. Those are 20 times
slower than loops over the columns (1 against 22 Gweights/s for Q4_0).

So a block's program is traced once, and evaluated with every element of a block as an array of its
own, with one entry per column. Reshapes and concatenations become bookkeeping in Python. XLA sees a
straight line of vector operations, which it fuses into one loop.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal


def rows_of(plane):
    """The elements of a plane [lead, *field, N]: an object array [*field] of arrays [lead, N]."""
    field = plane.shape[1:-1]
    rows = np.empty(field, object)
    for index in np.ndindex(*field):
        rows[index] = plane[(slice(None), *index)]
    return rows


def unroll(program, fields):
    """Evaluates program(**fields) on object arrays of equally shaped jax arrays.

    Args:
        program: the fields of one block -> a pytree of arrays.
        fields: {name: object array of the field's shape}.

    Returns:
        The program's pytree, with object arrays as its leaves.

    Raises:
        NotImplementedError: the program has a primitive without a rule here.
    """
    avals = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.flat[0].dtype) for name, rows in fields.items()
    }
    traced, shape = jax.make_jaxpr(lambda block: program(**block), return_shape=True)(avals)
    leaves = _evaluate(
        traced.jaxpr,
        traced.consts,
        jax.tree.leaves(fields, is_leaf=lambda x: isinstance(x, np.ndarray)),
    )
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


def _evaluate(jaxpr, consts, args):
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts)))
    values.update(zip(jaxpr.invars, args))

    def read(atom):
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        values.update(zip(equation.outvars, _apply(equation, operands)))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation, operands):
    name = equation.primitive.name
    if name in ("jit", "pjit"):
        inner = equation.params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, operands)
    if all(operand.dtype != object for operand in operands):
        with jax.ensure_compile_time_eval():
            return [
                np.asarray(equation.primitive.bind(*map(jnp.asarray, operands), **equation.params))
            ]
    if name in _MOVES:
        return [_MOVES[name](operands, equation.params, equation.outvars[0].aval.shape)]
    if name in _ELEMENTWISE:
        return [_elementwise(equation, operands)]
    raise NotImplementedError(
        f"the operation {name} of a block's program cannot be written out by columns"
    )


def _elementwise(equation, operands):
    shape = equation.outvars[0].aval.shape
    operands = [np.broadcast_to(operand, shape) for operand in operands]
    like = next(operand.flat[0] for operand in operands if operand.dtype == object)

    def as_row(value):
        return value if isinstance(value, jax.Array) else jnp.full(like.shape, value)

    out = np.empty(shape, object)
    for index in np.ndindex(*shape):
        out[index] = equation.primitive.bind(
            *(as_row(operand[index]) for operand in operands), **equation.params
        )
    return out


def _slice(operands, params, shape):
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * len(starts)
    return operands[0][tuple(map(slice, starts, limits, steps))]


def _broadcast(operands, params, shape):
    expanded = [1] * len(shape)
    for source, target in enumerate(params["broadcast_dimensions"]):
        expanded[target] = operands[0].shape[source]
    return np.broadcast_to(operands[0].reshape(expanded), shape)


_MOVES = {
    "reshape": lambda operands, params, shape: operands[0].reshape(shape),
    "squeeze": lambda operands, params, shape: operands[0].reshape(shape),
    "expand_dims": lambda operands, params, shape: operands[0].reshape(shape),
    "concatenate": lambda operands, params, shape: np.concatenate(
        operands, axis=params["dimension"]
    ),
    "transpose": lambda operands, params, shape: operands[0].transpose(params["permutation"]),
    "slice": _slice,
    "broadcast_in_dim": _broadcast,
}
_ELEMENTWISE = {
    "and",
    "or",
    "xor",
    "not",
    "add",
    "sub",
    "mul",
    "neg",
    "max",
    "min",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "select_n",
    "shift_left",
    "shift_right_logical",
    "shift_right_arithmetic",
    "convert_element_type",
    "bitcast_convert_type",
}
