"""Tile sizes of the attention kernels: `DECODE` and `PREFILL`.

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


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tile sizes of a kernel.

    Attributes:
        usual: the sizes of each GPU family.
        long: the sizes for long caches, where they differ.
        slots: the least number of slots of a long cache.
        queries: the least number of new tokens times heads per KV head that `long` is for.
    """

    usual: dict
    long: dict
    slots: int
    queries: int = 1

    def of(self, target: Target, itemsize: int, width: int, slots: int, queries: int = 1) -> Blocks:
        """Choose the sizes for a launch.

        Args:
            target: the compilation target.
            itemsize: bytes of a number in the cache.
            width: the width of a head, at most 512.
            slots: the slots of the cache.
            queries: the number of new tokens times heads per KV head.
        """
        sizes = of_family(self.usual, target)
        if slots >= self.slots and queries >= self.queries:
            sizes = sizes | of_family(self.long, target)
        return sizes[min(key for key in sizes if key[0] == itemsize and key[1] >= width)]


_DECODE = {
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
# MI300X: 304 compute units.
_DECODE["rocm gfx942"] = {
    key: dataclasses.replace(blocks, programs=608) for key, blocks in _DECODE["rocm gfx9"].items()
}
# Fewer, larger programs read long caches faster, and still fill the GPU. Measured on an H200 with
# 32000 of 32768 slots.
_LONG_DECODE = {
    "": {},
    "cuda 9": {(2, 128): Blocks(64, rows=64, threads=128, stages=2, programs=264)},
}
DECODE = Sizes(_DECODE, _LONG_DECODE, slots=16384)

_PREFILL = {
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
_PREFILL["cuda 9"] = _PREFILL["cuda"] | {(2, 128): Blocks(64, rows=64, threads=128, stages=3)}
# gfx12's matrix units need half as many registers for their operands as gfx11's.
_PREFILL["rocm gfx12"] = _PREFILL[""] | {
    (2, 128): Blocks(32, rows=64, threads=256),
    (2, 256): Blocks(16, rows=32, threads=256),
    (2, 512): Blocks(16, rows=32, threads=512),
}

# Programs of two groups of warps reuse each block of slots for twice as many rows. Measured on an
# H200 with 2048 tokens of 32 heads: 1.07 times as fast with 16000 of 32768 slots, 1.03 with 4096 of
# 4096, and 0.96 with 2048 of 2048.
_LONG_PREFILL = {"": {}, "cuda 9": {(2, 128): Blocks(128, rows=128, threads=256, stages=3)}}
PREFILL = Sizes(_PREFILL, _LONG_PREFILL, slots=4096, queries=4096)
