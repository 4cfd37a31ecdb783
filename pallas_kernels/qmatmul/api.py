"""Products with packed weights: what the kernels are asked for."""

from typing import NamedTuple

import jax

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import activations, codes, gemv
from pallas_kernels.qmatmul.activations import Activations
from pallas_kernels.targets import Target

#: Rows of activations up to which the weight is read packed; beyond, dequantising it once and the
#: matrix units are quicker.
FEW_ROWS = 16


class Weight(NamedTuple):
    """A packed matrix [N, K], or a stack of them: planes as in `packing`, the stack's axis before
    theirs.
    """

    planes: dict[str, jax.Array]
    packing: Packing

    @property
    def rows(self) -> int:
        """N."""
        return self.planes["codes"].shape[-3]


class Product(NamedTuple):
    """One output [M, N]: x @ weight.T, or with two weights silu(x @ gate.T) * (x @ up.T).

    Then + bias [N], then + residual [M, N].

    experts: int32 [P], P a multiple of the M rows of x, for weights that are stacks: row p of the
    output, [P, N] then, is row p // (P / M) of x times matrix experts[p].
    """

    weights: tuple[Weight, ...]
    bias: jax.Array | None = None
    residual: jax.Array | None = None
    experts: jax.Array | None = None

    @property
    def rows(self) -> int:
        return self.weights[0].rows


def multiply(
    x: jax.Array | Activations,
    products: list[Product],
    *,
    mode: str,
    dtype,
    target: Target,
    norm=None,
    epsilon: float = 0.0,
    tile=None,
) -> list[jax.Array]:
    """All products of one input, in one launch for Activations, in two for x [M, K]: one quantises
    x (after an RMSNorm, if norm [K] is given).

    -> the output of each product, [M, N] in `dtype`. mode: of the activations, see `activations`.
    tile: `blocks.Tile`, default that of the target. NotImplementedError: no row or more than
    FEW_ROWS (of experts, any number), planes beyond 32-bit offsets.
    """
    if mode not in activations.MODES:
        raise ValueError(f"activations are {', '.join(activations.MODES)}, got {mode!r}")
    rows = x.rows if isinstance(x, Activations) else x.shape[0]
    pairs = _pairs(products, rows)
    if not rows or pairs is None and rows > FEW_ROWS:
        raise NotImplementedError(f"{rows} rows, the kernel takes 1 to {FEW_ROWS}")
    for product in products:
        for weight in product.weights:
            check_offsets(weight.planes)
    if not isinstance(x, Activations):
        in_turn = codes.come_in_turn(
            (weight.packing for product in products for weight in product.weights), target
        )
        x = activations.quantize(
            x, mode, norm=norm, epsilon=epsilon, in_turn=in_turn, target=target
        )
    jobs = [gemv.Job(tuple(weight.packing for weight in p.weights), p.rows) for p in products]
    operands = [
        gemv.Operands([weight.planes for weight in p.weights], p.bias, p.residual, p.experts)
        for p in products
    ]
    return gemv.multiply(x, jobs, operands, dtype, target, tile, pairs)


def _pairs(products, rows: int) -> int | None:
    """Rows of the outputs where the products name experts, None where they name none."""
    pairs, *others = {None if p.experts is None else p.experts.shape[0] for p in products}
    if others or pairs is not None and (not rows or pairs % rows):
        counts = ["none" if p.experts is None else p.experts.shape[0] for p in products]
        raise ValueError(
            f"all products of a launch have experts for the same multiple of {rows} rows, or none;"
            f" got {counts}"
        )
    for product in products:
        for weight in product.weights:
            if weight.planes["codes"].ndim != (axes := 3 if pairs is None else 4):
                raise ValueError(
                    f"a product with{'out' if pairs is None else ''} experts has planes of {axes}"
                    f" axes, got {weight.planes['codes'].ndim}"
                )
    return pairs


def check_offsets(planes) -> None:
    """NotImplementedError for a plane that a kernel cannot address: Triton's offsets count elements
    in 32 bits with a sign.

    They become 64 bits wide where an operand has more than 2^32 bytes: too late for planes of
    bytes.
    """
    for name, plane in planes.items():
        if plane.size >= 2**31:
            raise NotImplementedError(
                f"the plane {name} has {plane.size} elements, a kernel addresses fewer than {2**31}"
            )
