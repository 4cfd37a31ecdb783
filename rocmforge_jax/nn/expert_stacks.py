"""The layers of all experts of a mixture, as modules or as arrays."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from pallas_kernels.activation_functions import SILU, ActivationFunction
from rocmforge_jax.nn.linear import value_or_none
from rocmforge_jax.nn.mlp import gated


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


class Stacks(NamedTuple):
    """The layers of all experts: `Experts` or other modules, or a `Stack` each.

    Attributes:
        gate: The gates, or None: `up` has no gate, or is twice as wide as the input of `down` and
            holds the gates before the linear parts.
        up: The linear parts.
        down: The products that follow.
        activation: The activation function.
    """

    gate: Any
    up: Any
    down: Any
    activation: ActivationFunction = SILU

    @property
    def first(self) -> list:
        """The one or two layers of the input."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    @property
    def all(self) -> list:
        """Every layer."""
        return [*self.first, self.down]

    @property
    def is_fused(self) -> bool:
        """Whether `up` holds the gates too."""
        return self.gate is None and self.up.kernel.shape[2] == 2 * self.down.kernel.shape[1]

    def check(self) -> None:
        """Raises ValueError, with the shapes, unless the layers fit together."""
        shapes = [list(layer.kernel.shape) for layer in self.all]
        (E, _, hidden), down = shapes[0], shapes[-1]
        halves = 2 if self.is_fused else 1
        if any(shape != shapes[0] for shape in shapes[:-1]) or down[:2] != [E, hidden // halves]:
            raise ValueError(f"stacks of experts do not fit together: {shapes}")

    def arrays(self) -> "Stacks":
        """Returns the same layers as arrays."""
        gate = None if self.gate is None else Stack.of(self.gate)
        return Stacks(gate, Stack.of(self.up), Stack.of(self.down), self.activation)

    def hidden(self, outputs: list):
        """Computes the hidden layer of the outputs of the first layers, [..., hidden]."""
        parts = jnp.split(outputs[0], 2, axis=-1) if self.is_fused else outputs
        return gated(*parts, activation=self.activation)
