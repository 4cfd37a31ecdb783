"""Dequantisation of packed weights: checks the operands, then runs the kernel."""

import jax

from pallas_kernels.dequantize import kernels
from pallas_kernels.dequantize.blocks import BLOCKS, Blocks
from pallas_kernels.packing import Packing
from pallas_kernels.targets import Target, of_family


def dequantize(
    planes,
    packing: Packing,
    dtype,
    *,
    target: Target,
    groups: int | None = None,
    blocks: Blocks | None = None,
) -> jax.Array:
    """Dequantise a packed matrix, with results bitwise equal to `reference.dequantize`.

    Args:
        planes: the arrays of the matrix, as described in `pallas_kernels.packing`.
        packing: the format of the planes.
        dtype: the dtype of the values.
        target: the compilation target.
        groups: K / 32, the number of groups of a row to dequantise; the default is all of them.
        blocks: the tile sizes; the default depends on the target.

    Returns:
        The values [N, K].

    Raises:
        ValueError: the planes do not belong to a single matrix.
    """
    if planes["codes"].ndim != 3:
        raise ValueError(
            f"codes of a matrix have 3 axes [N, bits, K / 32], got {planes['codes'].ndim}:"
            f" {list(planes['codes'].shape)}"
        )
    blocks = blocks or of_family(BLOCKS, target)
    groups = groups or planes["codes"].shape[-1]
    return kernels.dequantize(planes, packing, dtype, groups, blocks, target)
