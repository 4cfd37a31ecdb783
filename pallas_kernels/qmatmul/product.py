"""Packed weights, and descriptions of the products of one input with them."""

from typing import NamedTuple

import jax

from pallas_kernels.activation_functions import ActivationFunction
from pallas_kernels.packing import Packing


class Weight(NamedTuple):
    """A packed matrix [N, K], or a stack of E such matrices.

    Attributes:
        planes: the arrays that `pallas_kernels.packing` describes. In a stack, they have a leading
            axis E.
        packing: the format of the planes.
    """

    planes: dict[str, jax.Array]
    packing: Packing

    @property
    def rows(self) -> int:
        """N, the number of outputs of a product with the matrix."""
        return self.planes["codes"].shape[-3]

    @property
    def groups(self) -> int:
        """K / 32, the number of groups of inputs."""
        return stored_groups(self)


def stored_groups(weight) -> int:
    """Return the groups of a row of the planes, which may be padded to more than K / 32."""
    return weight.planes["codes"].shape[-1]


class Product(NamedTuple):
    """A product of an input x [M, K] with one or two weights, and its epilogue -> [M, N].

    Each weight produces y = x @ weight.T * scale + bias. The activation function computes f(y) for
    one weight, and f(gate) * up for two. The residual is added to the result.

    Attributes:
        weights: one or two weights with the same N and K. If there are two, the first is the gate.
        biases: a bias for each weight, [N], [E, N] with experts, or None; None for no biases.
        residual: [M, N], or None.
        experts: int32 [P], P a multiple of M, or None. With experts, the weights are stacks and the
            output is [P, N]: row p is row p // (P / M) of x times matrix experts[p].
        scales: a scale for each weight, float32 [1], [E] with experts, or None; None for no scales.
        activation: the activation function, or None, which requires a single weight.
    """

    weights: tuple[Weight, ...]
    biases: tuple[jax.Array | None, ...] | None = None
    residual: jax.Array | None = None
    experts: jax.Array | None = None
    scales: tuple[jax.Array | None, ...] | None = None
    activation: ActivationFunction | None = None

    @property
    def rows(self) -> int:
        """N, the width of the output."""
        return self.weights[0].rows

    @property
    def pairs(self) -> int | None:
        """P, the rows of the output, or None without experts."""
        return None if self.experts is None else self.experts.shape[0]

    @property
    def packings(self) -> tuple[Packing, ...]:
        """The packing of each weight."""
        return tuple(weight.packing for weight in self.weights)

    @property
    def of_each_weight(self) -> tuple[tuple[Weight, jax.Array | None, jax.Array | None], ...]:
        """The (weight, scale, bias) of each weight."""
        nones = (None,) * len(self.weights)
        return tuple(zip(self.weights, self.scales or nones, self.biases or nones))

    def check_epilogue(self) -> None:
        """Raises ValueError unless the epilogue fits the number and shapes of the weights."""
        count = len(self.weights)
        if count not in (1, 2):
            raise ValueError(f"a product has {count} weights: expected 1, or 2 with a gate")
        if self.activation is None and count == 2:
            raise ValueError("a product of 2 weights needs an activation function")
        if self.activation is not None and self.activation.needs_gate and count == 1:
            raise ValueError(f"{self.activation} needs 2 weights, the product has 1")
        stack = self.weights[0].planes["codes"].shape[:-3]
        for name, shape in (("biases", (*stack, self.rows)), ("scales", stack or (1,))):
            arrays = getattr(self, name)
            if arrays is None:
                continue
            if len(arrays) != count:
                raise ValueError(f"a product of {count} weights has {len(arrays)} {name}")
            for array in arrays:
                if array is not None and array.shape != shape:
                    raise ValueError(
                        f"one of the {name} has shape {list(array.shape)}: expected {list(shape)}"
                    )
