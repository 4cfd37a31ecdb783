"""The layers of all experts of a mixture, as modules or as arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.activation_functions import SILU, ActivationFunction
from pallas_kernels.qmatmul import Product
from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics
from rocmforge_jax.nn.linear import Experts, through_expert, value_or_none
from rocmforge_jax.nn.mlp import gated
from rocmforge_jax.quant.multiply import require_whole


class Stack(NamedTuple):
    """The arrays of an `Experts` layer: (E, in, out), (E,) or None, (E, out) or None."""

    kernel: Any
    scale_E: Any = None
    bias_EN: Any = None

    @staticmethod
    def of(layer) -> "Stack":
        """Returns the arrays of a layer."""
        others = value_or_none(layer.output_scale), value_or_none(layer.bias)
        return Stack(layer.kernel.get_value(), *others)

    def product(self, experts_P) -> Product:
        """Describes the product of pairs with their experts."""
        return _product([self], experts_P)


def _product(stacks: list[Stack], experts_P, activation=None) -> Product:
    kernels, scales, biases = zip(*stacks)
    return Product(kernels, biases, experts=experts_P, scales=scales, activation=activation)


def require_packed(layers: list) -> list[quant.QTensor]:
    """Returns the layers' packed weights; raises NotImplementedError if one is not packed."""
    if others := [type(layer).__name__ for layer in layers if type(layer) is not Experts]:
        raise NotImplementedError(f"a stack of experts is a {others[0]}")
    weights = [layer.kernel.get_value() for layer in layers]
    if not all(isinstance(weight, quant.QTensor) for weight in weights):
        raise NotImplementedError("a stack of experts is not packed")
    for weight in weights:
        require_whole(weight)
    return weights


class Stacks(NamedTuple):
    """The feed-forward layers of all experts.

    Each layer is an `Experts`, another module, or a `Stack` (see `arrays`).

    Attributes:
        gate: The gate projections. None: there are no gates, or `up` contains them.
        up: The up projections. If they are twice as wide as the input of `down`, their first half
            is the gates.
        down: The down projections.
        activation: The activation function.
    """

    gate: Any
    up: Any
    down: Any
    activation: ActivationFunction = SILU

    @property
    def first(self) -> list:
        """The one or two layers that read the input."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    @property
    def all(self) -> list:
        """All layers: the first ones, then `down`."""
        return [*self.first, self.down]

    @property
    def is_fused(self) -> bool:
        """Whether `up` also contains the gates."""
        return self.gate is None and self.up.kernel.shape[2] == 2 * self.down.kernel.shape[1]

    def check(self) -> None:
        """Raises ValueError, with the shapes, unless the layers fit together."""
        shapes = [list(layer.kernel.shape) for layer in self.all]
        (E, _, hidden), down = shapes[0], shapes[-1]
        halves = 2 if self.is_fused else 1
        if any(shape != shapes[0] for shape in shapes[:-1]) or down[:2] != [E, hidden // halves]:
            raise ValueError(f"stacks of experts do not fit together: {shapes}")

    def arrays(self) -> "Stacks":
        """Returns these layers, each replaced by its `Stack` of arrays."""
        gate = None if self.gate is None else Stack.of(self.gate)
        return Stacks(gate, Stack.of(self.up), Stack.of(self.down), self.activation)

    def hidden(self, outputs: list):
        """Applies gate and activation to the outputs of the first layers, [..., hidden]."""
        parts = jnp.split(outputs[0], 2, axis=-1) if self.is_fused else outputs
        return gated(*parts, activation=self.activation)

    def through_pairs(self, multiply: Callable, x_TD, experts, **of_x):
        """Computes the feed-forward of rows, each for one expert, in two calls of a kernel.

        Args:
            multiply: Computes products: `backends.pallas.skinny_gemm`, or `backends.cpp.multiply`
                or `backends.pallas.gemv` with a given mode.
            x_TD: The tokens.
            experts: The experts of the rows, as `multiply` expects them. If there is one for each
                row, the rows of a token are consecutive.
            **of_x: Arguments of `multiply` for x: its norm, or which of its rows to use.

        Returns:
            The output of each row, float32.
        """
        if self.is_fused:
            first = _product(self.first, experts)
            hidden = self.hidden(multiply(x_TD, [first], dtype=jnp.float32, **of_x))
            hidden = hidden.astype(x_TD.dtype)
        else:
            first = _product(self.first, experts, self.activation)
            (hidden,) = multiply(x_TD, [first], dtype=x_TD.dtype, **of_x)
        return multiply(hidden, [self.down.product(experts)], dtype=jnp.float32)[0]

    def one_expert(self, x, e, numerics: Numerics):
        """Computes one expert's feed-forward of x [..., D] -> float32 [..., D]."""
        hidden = self.hidden([through_expert(x, e, *s, numerics=numerics) for s in self.first])
        return through_expert(hidden, e, *self.down, numerics=numerics).astype(jnp.float32)

    def expert_by_expert(self, x_TD, experts_P, numerics: Numerics):
        """Computes the feed-forward of each pair, float32 [P, D]; every expert sees all tokens."""
        experts_TU = experts_P.reshape(len(x_TD), -1)

        def expert(y_TUD, e):
            y_TD = self.one_expert(x_TD, e, numerics)
            return jnp.where((experts_TU == e)[..., None], y_TD[:, None], y_TUD), None

        start = jnp.zeros((*experts_TU.shape, x_TD.shape[1]), jnp.float32)
        y_TUD, _ = jax.lax.scan(expert, start, jnp.arange(self.up.kernel.shape[0]))
        return y_TUD.reshape(len(experts_P), -1)
