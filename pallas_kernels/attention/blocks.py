"""How attention is cut into programs: sizes as data.

A table has an entry for each family of GPUs (`targets.of_family`). Its keys are (bytes of a number
in the cache, widest head of the entry).

- NVIDIA: tuned on an H100 and an H200, but for heads of 512, whose sizes are small and untuned.
- AMD: not tuned on hardware. XLA's compiler spills nothing on gfx9, but for one register in decode
  with float32 heads of 512 that rotate in part.
- The default is for the smallest register files, RDNA's. Two cases spilled there with every size
  that was tried: float32 caches with heads wider than 128, whose products are multiply-adds, and
  heads of 512, on gfx11 always, on gfx12 in decode where new tokens rotate in part.
"""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of a program.

    Attributes:
        slots: of a block of the cache, a power of two from 16.
        rows: most queries of a tile, a power of two from 16.
        threads: of a program, at most 1024.
        stages: blocks of slots in flight.
        programs: how many programs a launch should have at least, two for each multiprocessor
            (decode only).
    """

    slots: int
    rows: int
    threads: int
    stages: int = 1
    programs: int = 256

    def warps(self, target: Target) -> int:
        """The warps (waves) of a program on the target."""
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
#: Slots of a cache from which on `LONG_DECODE` counts. Few large programs read it faster, and there
#: are enough of them.
LONG = 16384
#: Sizes for such caches where they differ: measured on an H200 with 32000 of 32768 slots.
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
# Its matrix units need half the registers for their operands that gfx11's need.
PREFILL["rocm gfx12"] = PREFILL[""] | {
    (2, 128): Blocks(32, rows=64, threads=256),
    (2, 256): Blocks(16, rows=32, threads=256),
    (2, 512): Blocks(16, rows=32, threads=512),
}


def chosen(table: dict, target: Target, itemsize: int, width: int) -> Blocks:
    """The sizes for a cache and a target.

    Args:
        table: DECODE or PREFILL.
        target: what the kernel is compiled for.
        itemsize: bytes of a number of the cache.
        width: the width of a head, at most 512.
    """
    sizes = of_family(table, target)
    return sizes[min(key for key in sizes if key[0] == itemsize and key[1] >= width)]


def chosen_for_decode(target: Target, itemsize: int, width: int, slots: int) -> Blocks:
    """The sizes for one token, as `chosen`, for a cache of so many slots."""
    long = of_family(LONG_DECODE, target) if slots >= LONG else {}
    return chosen({"": of_family(DECODE, target) | long}, target, itemsize, width)
