"""What is multiplied: packed weights, and the products of one input with them."""

from typing import NamedTuple

import jax

from pallas_kernels.activation_functions import ActivationFunction
from pallas_kernels.packing import Packing


class Weight(NamedTuple):
    """A packed matrix [N, K], or a stack of E such matrices.

    Attributes:
        planes: the arrays that `pallas_kernels.packing` describes; those of a stack have the axis E
            first.
        packing: what the planes hold.
    """

    planes: dict[str, jax.Array]
    packing: Packing

    @property
    def rows(self) -> int:
        """N, the outputs of a product with the matrix."""
        return self.planes["codes"].shape[-3]

    @property
    def groups(self) -> int:
        """K / 32, the groups of inputs."""
        return self.planes["codes"].shape[-1]


class Product(NamedTuple):
    """One output [M, N] of an input x [M, K].

    Each weight gives y = x @ weight.T * scale + bias. The activation function makes one of them,
    f(y), or of two, f(gate) * up. The residual is added to that.

    Attributes:
        weights: one or two weights with the same N and K; of two the first is the gate.
        biases: of each weight: [N], [E, N] with experts, or None. None: no weight has one.
        residual: [M, N], or None.
        experts: int32 [P], P a multiple of M, or None. With experts the weights are stacks and the
            output is [P, N]: row p is row p // (P / M) of x times matrix experts[p].
        scales: of each weight: float32 [1], [E] with experts, or None. None: no weight has one.
        activation: the activation function; None leaves the only weight's product as it is.
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
        """Raises ValueError unless what follows the products fits their number and shapes."""
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
