"""Products with packed weights: checks the operands, then runs a kernel."""

import itertools

import jax

from pallas_kernels.qmatmul import activations, codes, gemv, skinny_gemm
from pallas_kernels.qmatmul.activations import Activations
from pallas_kernels.qmatmul.blocks import MatrixTile, Tile
from pallas_kernels.qmatmul.product import Product
from pallas_kernels.targets import Target

#: The most rows of activations of a GEMV. With more rows, the matrix units are faster.
GEMV_ROWS = 16


def multiply(
    x: jax.Array | Activations,
    products: list[Product],
    *,
    mode: str,
    dtype,
    target: Target,
    norm=None,
    epsilon: float = 0.0,
    tile: Tile | None = None,
    shared: jax.Array | None = None,
) -> list[jax.Array]:
    """Multiply a few rows of activations with several weights (GEMV).

    All products run in one launch. If x is an array, another launch quantises it first.

    Args:
        x: [M, K] of any float dtype, or Activations.
        products: the products to compute. All of them have experts, or none.
        mode: how x is quantised, one of `activations.MODES`.
        dtype: the dtype of the outputs.
        target: the compilation target.
        norm: the scale [K] of an RMSNorm to apply to an array x first, or None.
        epsilon: the epsilon of that norm.
        tile: the tile sizes; the default depends on the target.
        shared: int32 [tiles, R], for products with experts: the rows of the output that one program
            computes together. The rows of a tile have the same expert, which is read once. Every
            row must be in a tile. A tile with fewer rows repeats one of them. A tile with a
            negative first entry is skipped. None: each row is computed separately.

    Returns:
        The output of each product, [M, N], or [P, N] with experts.

    Raises:
        NotImplementedError: x has no rows, or without experts more than GEMV_ROWS; or a plane is
            too large for 32-bit offsets.
        ValueError: the operands do not fit together, or rows are shared without experts.
    """
    if mode not in activations.MODES:
        raise ValueError(f"activations are {', '.join(activations.MODES)}, got {mode!r}")
    rows = x.rows if isinstance(x, Activations) else x.shape[0]
    _check_experts(products, rows)
    if shared is not None and products[0].pairs is None:
        raise ValueError(f"tiles of rows {list(shared.shape)} are shared, but there are no experts")
    if not rows or products[0].pairs is None and rows > GEMV_ROWS:
        raise NotImplementedError(f"{rows} rows, the kernel takes 1 to {GEMV_ROWS}")
    _check(products)
    if not isinstance(x, Activations):
        in_turn = codes.come_in_turn(
            itertools.chain.from_iterable(product.packings for product in products), target
        )
        x = activations.quantize(
            x, mode, norm=norm, epsilon=epsilon, in_turn=in_turn, target=target
        )
    return gemv.multiply(x, products, dtype, target, tile, shared)


def multiply_skinny(
    x_MK: jax.Array,
    products: list[Product],
    *,
    dtype,
    target: Target,
    tile: MatrixTile | None = None,
    rows: jax.Array | None = None,
    norm=None,
    epsilon: float = 0.0,
) -> list[jax.Array]:
    """Multiply tens of rows of activations with several weights on the matrix units (skinny GEMM).

    All products run in one launch, between short launches that prepare x and compute epilogues. The
    values of the weights are rounded to x's dtype.

    Args:
        x_MK: bfloat16 or float16.
        products: the products to compute. Here `experts` is int32 [M / R], where R is a power of
            two, at least 16: the index of the matrix for each R rows of the output. Rows with a
            negative index are not written. All products have the same experts, or none.
        dtype: the dtype of the outputs.
        target: the compilation target.
        tile: the tile sizes; the default depends on the target.
        rows: int32 [M], with experts: the row of x, which may have any number of rows, for each row
            of the output. None: row m is for row m.
        norm: the scale [K] of an RMSNorm to apply to x first, or None.
        epsilon: the epsilon of that norm.

    Returns:
        The output of each product, [M, N].

    Raises:
        NotImplementedError: a plane is too large for 32-bit offsets.
        ValueError: the operands do not fit together, or M is not a valid R times the number of
            experts.
    """
    stacked = {product.experts is not None for product in products}
    if len(stacked) > 1:
        raise ValueError("all products of a launch have experts, or none have")
    _check_axes(products, stacked.pop())
    _check(products)
    how = dict(target=target, tile=tile, rows=rows, norm=norm, epsilon=epsilon)
    return skinny_gemm.multiply(x_MK, products, dtype, **how)


def _check(products: list[Product]) -> None:
    """Raises ValueError or NotImplementedError unless the weights and epilogues are supported."""
    for product in products:
        product.check_epilogue()
        for weight in product.weights:
            check_offsets(weight.planes)


def _check_experts(products: list[Product], rows: int) -> None:
    """Raises ValueError unless all products have experts for the same rows, or none have."""
    pairs, *others = {product.pairs for product in products}
    if others or pairs is not None and (not rows or pairs % rows):
        counts = ["none" if product.pairs is None else product.pairs for product in products]
        raise ValueError(
            f"all products of a launch have experts for the same multiple of {rows} rows, or none;"
            f" got {counts}"
        )
    _check_axes(products, pairs is not None)


def _check_axes(products: list[Product], stacked: bool) -> None:
    """Raises ValueError unless the weights are stacks of matrices, or matrices."""
    for weight in itertools.chain.from_iterable(product.weights for product in products):
        if weight.planes["codes"].ndim != (axes := 4 if stacked else 3):
            raise ValueError(
                f"a product with{'' if stacked else 'out'} experts has planes of {axes} axes,"
                f" got {weight.planes['codes'].ndim}"
            )


def check_offsets(planes) -> None:
    """Check that a kernel can address every plane.

    Triton's offsets count elements in signed 32-bit numbers. They become 64 bits wide for an
    operand of more than 2^32 bytes, which is too late for planes of bytes.

    Raises:
        NotImplementedError: a plane has 2^31 elements or more.
    """
    for name, plane in planes.items():
        if plane.size >= 2**31:
            raise NotImplementedError(
                f"the plane {name} has {plane.size} elements, a kernel addresses fewer than {2**31}"
            )
