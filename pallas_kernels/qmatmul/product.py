"""What is multiplied: packed weights, and the products of one input with them."""

from typing import NamedTuple

import jax

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

    With one weight it is x @ weight.T, with two it is SwiGLU: silu(x @ gate.T) * (x @ up.T). The
    bias and then the residual are added to that.

    Attributes:
        weights: one or two weights with the same N and K.
        bias: [N], or None.
        residual: [M, N], or None.
        experts: int32 [P], P a multiple of M, or None. With experts the weights are stacks and the
            output is [P, N]: row p is row p // (P / M) of x times matrix experts[p].
    """

    weights: tuple[Weight, ...]
    bias: jax.Array | None = None
    residual: jax.Array | None = None
    experts: jax.Array | None = None

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
