"""Products with packed weights: what the kernels are asked for."""

from typing import NamedTuple

import jax

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import activations, few_rows
from pallas_kernels.targets import Target

#: Rows of activations up to which the weight is read packed; beyond, dequantising it once and the matrix units are quicker.
FEW_ROWS = 16


class Weight(NamedTuple):
    """A packed matrix [N, K]: planes as in `packing`."""

    planes: dict[str, jax.Array]
    packing: Packing

    @property
    def rows(self) -> int:
        return self.planes["codes"].shape[0]


class Product(NamedTuple):
    """One output [M, N]: x @ weight.T, or with two weights silu(x @ gate.T) * (x @ up.T); then + bias [N], then + residual [M, N]."""

    weights: tuple[Weight, ...]
    bias: jax.Array | None = None
    residual: jax.Array | None = None


def multiply(x_MK, products: list[Product], *, mode: str, dtype, target: Target, norm=None, epsilon: float = 0.0) -> list[jax.Array]:
    """All products of one input in two launches: one quantises x (after an RMSNorm, if norm [K] is given), one multiplies.

    mode: of the activations, see `activations`. NotImplementedError: no row or more than FEW_ROWS, planes beyond 32-bit offsets.
    """
    if mode not in activations.MODES:
        raise ValueError(f"activations are {', '.join(activations.MODES)}, got {mode!r}")
    if not 0 < x_MK.shape[0] <= FEW_ROWS:
        raise NotImplementedError(f"{x_MK.shape[0]} rows, the kernel takes 1 to {FEW_ROWS}")
    for product in products:
        for weight in product.weights:
            check_offsets(weight.planes)
    x = activations.quantize(x_MK, mode, norm=norm, epsilon=epsilon, target=target)
    jobs = [
        few_rows.Job(tuple(w.packing for w in p.weights), p.weights[0].rows, p.bias is not None, p.residual is not None) for p in products
    ]
    planes = [[weight.planes for weight in product.weights] for product in products]
    return few_rows.multiply(x, jobs, planes, [p.bias for p in products], [p.residual for p in products], dtype, target)


def check_offsets(planes) -> None:
    """NotImplementedError for a plane that a kernel cannot address: Triton's offsets count elements in 32 bits with a sign.

    They become 64 bits wide where an operand has more than 2^32 bytes: too late for planes of bytes.
    """
    for name, plane in planes.items():
        if plane.size >= 2**31:
            raise NotImplementedError(f"the plane {name} has {plane.size} elements, a kernel addresses fewer than {2**31}")
