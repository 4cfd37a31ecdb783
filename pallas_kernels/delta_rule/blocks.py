"""Tile sizes of the kernels of the gated delta net, by GPU family."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of a step, powers of two.

    Attributes:
        columns: columns of a memory per program. If heads are at most this wide, a single launch
            computes the step, with one program per key head. Otherwise, each program computes some
            columns of one value head, and a second launch applies the norm and the gate.
        threads: threads per program of the first launch.
        threads_finishing: threads per program of the second launch.
    """

    columns: int
    threads: int
    threads_finishing: int = 64


#: GPU family -> (smallest number of memories, sizes) in ascending order of the number. The sizes
#: for NVIDIA were measured on an H200, with 32 and with 1024 memories of 128 x 128.
BLOCKS = {
    "": ((0, Blocks(columns=32, threads=128)),),
    "cuda": ((0, Blocks(columns=16, threads=64)), (256, Blocks(columns=64, threads=128))),
}


def blocks_of(memories: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of memories, B * N."""
    return [blocks for least, blocks in of_family(BLOCKS, target) if memories >= least][-1]


@dataclasses.dataclass(frozen=True)
class ChunkBlocks:
    """Tile sizes of many tokens, powers of two.

    Attributes:
        tokens: tokens of a chunk, a multiple of `chunks.BLOCK`.
        part: numbers of a key, or of a value in the first launch, that are multiplied at once.
        columns: columns of a memory that a program computes, one chunk after the other.
        columns_read: columns of outputs per program.
        threads_solving: threads per program of the first launch.
        threads: threads per program of the second launch.
        threads_reading: threads per program of the third launch.
        stages: software pipelining stages of the second launch; 1 for no prefetch.
    """

    tokens: int
    part: int
    columns: int
    columns_read: int
    threads_solving: int
    threads: int
    threads_reading: int
    stages: int = 1


#: GPU family -> sizes. Those for NVIDIA were measured on an H200, with 32 memories of 128 x 128.
CHUNK_BLOCKS = {
    "": ChunkBlocks(32, 32, 16, 32, 256, 256, 256),
    "cuda": ChunkBlocks(64, 64, 32, 64, 128, 128, 128, stages=2),
}
