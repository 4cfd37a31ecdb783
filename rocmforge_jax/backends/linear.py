"""A primitive for functions that are linear in one operand and bring their own transpose.

`jax.custom_vjp` allows no forward mode, and `jax.custom_derivatives.linear_call` no `vmap`.
"""

import dataclasses
from typing import Any, Protocol

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class LinearFunction(Protocol):
    """A function of arrays that is linear in the first one. Hashable by what it computes."""

    def __call__(self, x: jax.Array, *constants: jax.Array) -> jax.Array:
        """Computes the function."""
        ...

    def transposed(self, dtype) -> "LinearFunction":
        """Returns the transpose: a linear function of an output's cotangent, in x's `dtype`."""
        ...


def linear(function: LinearFunction, x: jax.Array, constants: Any) -> jax.Array:
    """Computes function(x, *constants), differentiable in x to any order in either mode.

    Args:
        function: The function.
        x: The operand that the function is linear in.
        constants: The other arrays; their derivative is taken to be zero.
    """
    return _linear.bind(x, *map(jax.lax.stop_gradient, constants), function=function)


@dataclasses.dataclass(frozen=True)
class _Batched:
    """A function mapped over an axis of some of its operands, and of x."""

    function: LinearFunction
    axes: tuple[int | None, ...]

    def __call__(self, x, *constants):
        return jax.vmap(self.function, self.axes)(x, *constants)

    def transposed(self, dtype):
        return _Batched(self.function.transposed(dtype), self.axes)


_linear = Primitive("rocmforge_linear")


@_linear.def_impl
def _compute(*operands, function):
    return function(*operands)


@_linear.def_abstract_eval
def _shape(*operands, function):
    (output,) = jax.make_jaxpr(function)(*operands).out_avals
    return output


def _tangent(primals, tangents, *, function):
    x_tangent, *constants = tangents[0], *primals[1:]
    output = _linear.bind(*primals, function=function)
    if type(x_tangent) is ad.Zero:
        return output, ad.Zero.from_primal_value(output)
    return output, _linear.bind(x_tangent, *constants, function=function)


def _transpose(cotangent, x, *constants, function):
    if type(cotangent) is ad.Zero:
        return [None] * (1 + len(constants))
    d_x = _linear.bind(cotangent, *constants, function=function.transposed(x.aval.dtype))
    return [d_x, *[None] * len(constants)]


def _batch(operands, axes, *, function):
    x, *constants = operands
    size = next(a.shape[axis] for a, axis in zip(operands, axes) if axis is not None)
    x = batching.bdim_at_front(x, axes[0], size)
    return _linear.bind(x, *constants, function=_Batched(function, (0, *axes[1:]))), 0


ad.primitive_jvps[_linear] = _tangent
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
mlir.register_lowering(_linear, mlir.lower_fun(_compute, multiple_results=False))
