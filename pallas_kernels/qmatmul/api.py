"""Products with packed weights: what the kernels are asked for."""

import dataclasses
from typing import NamedTuple

import jax

from pallas_kernels.packing import GROUP, Packing
from pallas_kernels.qmatmul import activations, few_rows
from pallas_kernels.qmatmul.activations import Activations
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Next:
    """What an output goes into: products, after an RMSNorm of scale norm [N] and epsilon, or as it is."""

    norm: jax.Array | None = None
    epsilon: float = dataclasses.field(default=0.0, metadata=dict(static=True))


class Product(NamedTuple):
    """One output [M, N]: x @ weight.T, or with two weights silu(x @ gate.T) * (x @ up.T); then + bias [N], then + residual [M, N].

    next: makes the output Activations too, for the products that it goes into; N is a multiple of 32 then.
    """

    weights: tuple[Weight, ...]
    bias: jax.Array | None = None
    residual: jax.Array | None = None
    next: Next | None = None

    @property
    def rows(self) -> int:
        return self.weights[0].rows


def multiply(
    x: jax.Array | Activations, products: list[Product], *, mode: str, dtype, target: Target, norm=None, epsilon: float = 0.0, tile=None
) -> list[jax.Array | tuple[jax.Array, Activations]]:
    """All products of one input, in one launch for Activations, in two for x [M, K]: one quantises x (after an RMSNorm, if norm [K] is given).

    -> for each product its output [M, N] in `dtype`, with the Activations that it becomes where it has a `next`. mode: of the activations,
    see `activations`. tile: `blocks.Tile`, default that of the target. NotImplementedError: no row or more than FEW_ROWS, planes beyond
    32-bit offsets, outputs to be quantised that are no multiple of 32.
    """
    if mode not in activations.MODES:
        raise ValueError(f"activations are {', '.join(activations.MODES)}, got {mode!r}")
    rows = x.rows if isinstance(x, Activations) else x.shape[0]
    if not 0 < rows <= FEW_ROWS:
        raise NotImplementedError(f"{rows} rows, the kernel takes 1 to {FEW_ROWS}")
    for product in products:
        if product.next is not None and product.rows % GROUP:
            raise NotImplementedError(f"{product.rows} outputs, only multiples of {GROUP} can be quantised")
        for weight in product.weights:
            check_offsets(weight.planes)
    if not isinstance(x, Activations):
        x = activations.quantize(x, mode, norm=norm, epsilon=epsilon, target=target)
    operands = [
        few_rows.Operands([weight.planes for weight in p.weights], p.bias, p.residual, None if p.next is None else p.next.norm)
        for p in products
    ]
    outputs = few_rows.multiply(x, list(map(_job, products)), operands, dtype, target, tile)
    return [y if acts is None else (y, acts) for y, acts in outputs]


def _job(product: Product) -> few_rows.Job:
    next = product.next
    quantized = {} if next is None else dict(quantized=True, normed=next.norm is not None, epsilon=next.epsilon)
    return few_rows.Job(tuple(weight.packing for weight in product.weights), product.rows, **quantized)


def check_offsets(planes) -> None:
    """NotImplementedError for a plane that a kernel cannot address: Triton's offsets count elements in 32 bits with a sign.

    They become 64 bits wide where an operand has more than 2^32 bytes: too late for planes of bytes.
    """
    for name, plane in planes.items():
        if plane.size >= 2**31:
            raise NotImplementedError(f"the plane {name} has {plane.size} elements, a kernel addresses fewer than {2**31}")
