"""Tile sizes of the attention kernels.

Each table has an entry per GPU family (`targets.of_family`). The keys of an entry are (bytes of a
number in the cache, largest head width).

- NVIDIA: tuned on an H100 and an H200. The sizes for heads of width 512 are small and untuned.
- AMD: not tuned on hardware. On gfx9, XLA's compiler spills no registers, except one in decode with
  float32 heads of width 512 that are rotated in part.
- The default is for the smallest register files, those of RDNA. Two cases spilled there with every
  size that was tried. One is float32 caches with heads wider than 128, because their products are
  multiply-adds. The other is heads of width 512: always on gfx11, and on gfx12 in decode with new
  tokens that are rotated in part.
"""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of a program.

    Attributes:
        slots: slots per block of the cache, a power of two, at least 16.
        rows: the most queries in a tile, a power of two, at least 16.
        threads: threads per program, at most 1024.
        stages: blocks of slots in flight (software pipelining).
        programs: how many programs a launch should have at least, usually two per multiprocessor
            (decode only).
    """

    slots: int
    rows: int
    threads: int
    stages: int = 1
    programs: int = 256

    def warps(self, target: Target) -> int:
        """Return the number of warps (waves) per program on the target."""
        return max(1, self.threads // target.wave)


DECODE = {
    "": {
        (2, 64): Blocks(32, rows=64, threads=128),
        (2, 128): Blocks(32, rows=64, threads=256),
        (2, 256): Blocks(16, rows=32, threads=256),
        (2, 512): Blocks(16, rows=16, threads=512),
        (4, 64): Blocks(16, rows=64, threads=256),
        (4, 128): Blocks(16, rows=32, threads=512),
        (4, 256): Blocks(16, rows=16, threads=512),
        (4, 512): Blocks(16, rows=16, threads=512),
    },
    "rocm gfx9": {
        (2, 64): Blocks(64, rows=64, threads=256, stages=2),
        (2, 128): Blocks(64, rows=64, threads=256, stages=2),
        (2, 256): Blocks(32, rows=64, threads=256, stages=2),
        (2, 512): Blocks(16, rows=16, threads=256),
        (4, 64): Blocks(32, rows=64, threads=256, stages=2),
        (4, 128): Blocks(32, rows=64, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
        (4, 512): Blocks(16, rows=16, threads=256),
    },
    "cuda": {
        (2, 64): Blocks(64, rows=64, threads=128, stages=2),
        (2, 128): Blocks(32, rows=64, threads=128, stages=2, programs=528),
        (2, 256): Blocks(32, rows=64, threads=128, stages=2),
        (2, 512): Blocks(32, rows=32, threads=128),
        (4, 64): Blocks(32, rows=64, threads=128),
        (4, 128): Blocks(32, rows=32, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
        (4, 512): Blocks(16, rows=16, threads=256),
    },
}
#: Caches with at least this many slots use `LONG_DECODE`. Fewer, larger programs read them faster,
#: and still fill the GPU.
LONG = 16384
#: Sizes for such caches where they differ from DECODE. Measured on an H200 with 32000 of 32768
#: slots.
LONG_DECODE = {
    "": {},
    "cuda 9": {(2, 128): Blocks(64, rows=64, threads=128, stages=2, programs=264)},
}
# MI300X: 304 compute units.
DECODE["rocm gfx942"] = {
    key: dataclasses.replace(blocks, programs=608) for key, blocks in DECODE["rocm gfx9"].items()
}

PREFILL = {
    "": {
        (2, 64): Blocks(32, rows=64, threads=256),
        (2, 128): Blocks(32, rows=32, threads=256),
        (2, 256): Blocks(16, rows=32, threads=512),
        (2, 512): Blocks(16, rows=16, threads=512),
        (4, 64): Blocks(16, rows=32, threads=256),
        (4, 128): Blocks(16, rows=16, threads=512),
        (4, 256): Blocks(16, rows=16, threads=512),
        (4, 512): Blocks(16, rows=16, threads=512),
    },
    "rocm gfx9": {
        (2, 64): Blocks(64, rows=128, threads=256),
        (2, 128): Blocks(32, rows=64, threads=256, stages=2),
        (2, 256): Blocks(32, rows=64, threads=256),
        (2, 512): Blocks(16, rows=32, threads=256),
        (4, 64): Blocks(32, rows=64, threads=256),
        (4, 128): Blocks(32, rows=64, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
        (4, 512): Blocks(16, rows=16, threads=256),
    },
    "cuda": {
        (2, 64): Blocks(64, rows=128, threads=128, stages=2),
        (2, 128): Blocks(64, rows=64, threads=128, stages=2),
        (2, 256): Blocks(32, rows=64, threads=128, stages=2),
        (2, 512): Blocks(32, rows=32, threads=128),
        (4, 64): Blocks(32, rows=64, threads=256),
        (4, 128): Blocks(16, rows=32, threads=256),
        (4, 256): Blocks(16, rows=16, threads=256),
        (4, 512): Blocks(16, rows=16, threads=256),
    },
}
# Three blocks of slots in flight take 98 KB of shared memory, which smaller GPUs do not have.
PREFILL["cuda 9"] = PREFILL["cuda"] | {(2, 128): Blocks(64, rows=64, threads=128, stages=3)}
# gfx12's matrix units need half as many registers for their operands as gfx11's.
PREFILL["rocm gfx12"] = PREFILL[""] | {
    (2, 128): Blocks(32, rows=64, threads=256),
    (2, 256): Blocks(16, rows=32, threads=256),
    (2, 512): Blocks(16, rows=32, threads=512),
}


def chosen(table: dict, target: Target, itemsize: int, width: int) -> Blocks:
    """Return the tile sizes for a cache and a target.

    Args:
        table: DECODE or PREFILL.
        target: the compilation target.
        itemsize: bytes of a number in the cache.
        width: the width of a head, at most 512.
    """
    sizes = of_family(table, target)
    return sizes[min(key for key in sizes if key[0] == itemsize and key[1] >= width)]


def chosen_for_decode(target: Target, itemsize: int, width: int, slots: int) -> Blocks:
    """Like `chosen`, for decode with a cache of `slots` slots."""
    long = of_family(LONG_DECODE, target) if slots >= LONG else {}
    return chosen({"": of_family(DECODE, target) | long}, target, itemsize, width)
