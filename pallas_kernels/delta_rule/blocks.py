"""How a step of the gated delta net is cut into programs: sizes as data, by family of GPU."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of the programs of a step, powers of two.

    Attributes:
        columns: of a memory in a program. Where a head has no more values than that, one launch
            does it all, a program for each key head. If not, programs take some columns of one
            value head each, and a second launch norms and gates.
        threads: of a program of the first launch.
        threads_finishing: of a program of the second launch.
    """

    columns: int
    threads: int
    threads_finishing: int = 64


#: Family of GPU -> (memories from which on they count, sizes), the fewest memories first.
#: Those for NVIDIA were measured on an H200, with 32 and with 1024 memories of 128 x 128.
BLOCKS = {
    "": ((0, Blocks(columns=32, threads=128)),),
    "cuda": ((0, Blocks(columns=16, threads=64)), (256, Blocks(columns=64, threads=128))),
}


def blocks_of(memories: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of memories, B * N."""
    return [blocks for least, blocks in of_family(BLOCKS, target) if memories >= least][-1]
