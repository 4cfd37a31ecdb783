"""Values of packed planes: checks the operands, then runs the kernel."""

import jax

from pallas_kernels.dequantize import kernels
from pallas_kernels.dequantize.blocks import BLOCKS, Blocks
from pallas_kernels.packing import Packing
from pallas_kernels.targets import Target, of_family


def dequantize(
    planes, packing: Packing, dtype, *, target: Target, blocks: Blocks | None = None
) -> jax.Array:
    """Compute the values of a packed matrix [N, K], equal in every bit to `reference.dequantize`.

    Args:
        planes: the arrays of the matrix, as in `pallas_kernels.packing`.
        packing: what the planes hold.
        dtype: the dtype of the values.
        target: what the kernel is compiled for.
        blocks: the size of a program; the default depends on the target.

    Raises:
        ValueError: the planes are not those of a single matrix.
    """
    if planes["codes"].ndim != 3:
        raise ValueError(
            f"codes of a matrix have 3 axes [N, bits, K / 32], got {planes['codes'].ndim}:"
            f" {list(planes['codes'].shape)}"
        )
    blocks = blocks or of_family(BLOCKS, target)
    return kernels.dequantize(planes, packing, dtype, blocks, target)
