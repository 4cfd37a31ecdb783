"""Tile sizes of the kernels of the selective state space, by GPU family."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of a step, powers of two.

    Attributes:
        rows: the most rows of a memory that a program of the first launch computes at once.
        tiles: how many times as many rows it computes, one after the other.
        channels: the most channels per program of the second launch.
        threads: threads per program of the first launch.
        threads_finishing: threads per program of the second launch.
    """

    rows: int
    threads: int
    tiles: int = 1
    channels: int = 128
    threads_finishing: int = 64


#: GPU family -> (smallest number of memories, sizes) in ascending order of the number. The sizes
#: for NVIDIA were measured on an H200, with the heads of two models and batches of 1 and 32.
BLOCKS = {
    "": ((0, Blocks(rows=16, threads=128)),),
    "cuda": ((0, Blocks(rows=8, threads=64)), (256, Blocks(rows=4, threads=64, tiles=4))),
}


def blocks_of(memories: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of memories, B * N."""
    return [blocks for least, blocks in of_family(BLOCKS, target) if memories >= least][-1]


@dataclasses.dataclass(frozen=True)
class ChunkBlocks:
    """Tile sizes of many tokens, powers of two.

    Attributes:
        tokens: tokens of a chunk, at most 128.
        rows: the most rows of a memory per program of the second launch.
        columns: the most columns of it.
        threads: threads per program of the second launch.
        stages: software pipelining stages of the second launch; 1 for no prefetch.
        part: numbers of a direction that are multiplied at once in the third launch.
        width: the most numbers of a head's output per program of the third launch.
        threads_reading: threads per program of the third launch.
    """

    tokens: int
    rows: int
    columns: int
    threads: int
    stages: int
    part: int
    width: int
    threads_reading: int


#: GPU family -> sizes. Those for NVIDIA were measured on an H200, with 48 memories of 64 x 128 and
#: with 24 of 128 x 256.
CHUNK_BLOCKS = {
    "": ChunkBlocks(64, 32, 32, 256, 1, 32, 32, 256),
    "cuda": ChunkBlocks(64, 32, 32, 64, 3, 32, 64, 128),
}
