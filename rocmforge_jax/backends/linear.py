"""A primitive for functions that are linear in one operand and define their own transpose.

`jax.custom_vjp` does not support forward mode, and `jax.custom_derivatives.linear_call` does not
support `vmap`.
"""

import dataclasses
from typing import Any, Protocol

import jax
from jax.core import Tracer
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


class LinearFunction(Protocol):
    """A function of arrays that is linear in the first one.

    It is hashable, and equal functions compute the same.
    """

    def __call__(self, x: jax.Array, *constants: jax.Array) -> jax.Array:
        """Computes the function."""
        ...

    def transposed(self, dtype) -> "LinearFunction":
        """Returns the transpose: a linear function of the output's cotangent, in x's `dtype`."""
        ...


def linear(function: LinearFunction, x: jax.Array, constants: Any) -> jax.Array:
    """Computes function(x, *constants), differentiable in x to any order in either mode.

    Args:
        function: The function.
        x: The operand that the function is linear in.
        constants: The other arrays; their derivatives are treated as zero.
    """
    operands = x, *map(jax.lax.stop_gradient, constants)
    if not any(isinstance(operand, Tracer) for operand in operands):
        return function(*operands)
    return _bind(function, *operands)


def _bind(function, *operands):
    # The jaxpr is a parameter, because JAX inspects it when lowering.
    program = jax.make_jaxpr(function)(*operands)
    return _linear.bind(*operands, function=function, program=program)


@dataclasses.dataclass(frozen=True)
class _Batched:
    """A linear function that is mapped over an axis of x and of some constants."""

    function: LinearFunction
    axes: tuple[int | None, ...]

    def __call__(self, x, *constants):
        return jax.vmap(self.function, self.axes)(x, *constants)

    def transposed(self, dtype):
        return _Batched(self.function.transposed(dtype), self.axes)


_linear = Primitive("rocmforge_linear")


@_linear.def_impl
def _compute(*operands, function, program):
    (output,) = jaxpr_as_fun(program)(*operands)
    return output


@_linear.def_abstract_eval
def _shape(*operands, function, program):
    (output,) = program.out_avals
    return output


def _tangent(primals, tangents, *, function, program):
    # The constants have no tangents.
    x_tangent = ad.instantiate_zeros(tangents[0])
    output, tangent = (
        _linear.bind(x, *primals[1:], function=function, program=program)
        for x in (primals[0], x_tangent)
    )
    return output, tangent


def _transpose(cotangent, x, *constants, function, program):
    if type(cotangent) is ad.Zero:
        return [None] * (1 + len(constants))
    d_x = _bind(function.transposed(x.aval.dtype), cotangent, *constants)
    return [d_x, *[None] * len(constants)]


def _batch(operands, axes, *, function, program):
    x, *constants = operands
    size = next(a.shape[axis] for a, axis in zip(operands, axes) if axis is not None)
    x = batching.bdim_at_front(x, axes[0], size)
    return _bind(_Batched(function, (0, *axes[1:])), x, *constants), 0


ad.primitive_jvps[_linear] = _tangent
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_compute, multiple_results=False))
