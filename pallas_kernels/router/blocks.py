"""Tile sizes of the router kernels, by GPU family."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of the two kernels, powers of two.

    Attributes:
        experts: experts per program of the first kernel; 8 of them are 32 bytes of a row.
        inputs: inputs per program of the first kernel.
        pairs: the most pairs of experts that the second kernel compares at once.
        threads: threads per program of the first kernel.
        threads_choosing: threads per program of the second kernel.
    """

    experts: int
    inputs: int
    pairs: int
    threads: int
    threads_choosing: int = 128


#: GPU family -> (smallest number of experts, sizes) in ascending order of the number.
BLOCKS = {
    "": ((0, Blocks(experts=8, inputs=512, pairs=8192, threads=128)),),
    "cuda": (
        (0, Blocks(experts=8, inputs=512, pairs=8192, threads=128)),
        (
            256,
            Blocks(experts=32, inputs=128, pairs=32768, threads=128, threads_choosing=256),
        ),
    ),
}


def blocks_of(experts: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of experts."""
    return [blocks for least, blocks in of_family(BLOCKS, target) if experts >= least][-1]
