"""How the work is cut into programs: tuned sizes, as data.

A table is for a family of GPUs: the longest name that a target's begins with counts, "" is any
other GPU. Its keys are (bytes of a number in the cache, head width up to which it counts). For AMD
the sizes are such that XLA's compiler spills no registers; they are not tuned on hardware. Those of
"" are for the smallest register files, RDNA's, where float32 caches with heads wider than 128 spill
all the same: float32 products are made of multiply-adds there.
"""

import dataclasses

from pallas_kernels.targets import Target


@dataclasses.dataclass(frozen=True)
class Blocks:
    """slots: of a block of the cache, a power of two from 16.

    rows: most queries of a tile, likewise. threads: of a program, to 1024.

    stages: blocks of slots in flight. programs: as many are wanted at least, two for each
    multiprocessor (decode only).
    """

    slots: int
    rows: int
    threads: int
    stages: int = 1
    programs: int = 256

    def warps(self, target: Target) -> int:
        """`threads` in units of what runs in step on the target."""
        return max(1, self.threads // target.wave)


DECODE = {
    "": {
        (2, 64): Blocks(32, rows=64, threads=128),
        (2, 128): Blocks(32, rows=64, threads=256),
        (2, 256): Blocks(16, rows=32, threads=256),
        (4, 64): Blocks(16, rows=64, threads=256),
        (4, 128): Blocks(16, rows=32, threads=512),
        (4, 256): Blocks(16, rows=16, threads=512),
    },
    "rocm gfx9": {
        (2, 64): Blocks(64, rows=64, threads=256, stages=2),
        (2, 128): Blocks(64, rows=64, threads=256, stages=2),
        (2, 256): Blocks(32, rows=64, threads=256, stages=2),
        (4, 64): Blocks(32, rows=64, threads=256, stages=2),
        (4, 128): Blocks(32, rows=64, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
    },
    "cuda": {
        (2, 64): Blocks(64, rows=64, threads=128, stages=2),
        (2, 128): Blocks(32, rows=64, threads=128, stages=2, programs=528),
        (2, 256): Blocks(32, rows=64, threads=128, stages=2),
        (4, 64): Blocks(32, rows=64, threads=128),
        (4, 128): Blocks(32, rows=32, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
    },
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
        (4, 64): Blocks(16, rows=32, threads=256),
        (4, 128): Blocks(16, rows=16, threads=512),
        (4, 256): Blocks(16, rows=16, threads=512),
    },
    "rocm gfx9": {
        (2, 64): Blocks(64, rows=128, threads=256),
        (2, 128): Blocks(32, rows=64, threads=256, stages=2),
        (2, 256): Blocks(32, rows=64, threads=256),
        (4, 64): Blocks(32, rows=64, threads=256),
        (4, 128): Blocks(32, rows=64, threads=256),
        (4, 256): Blocks(16, rows=32, threads=256),
    },
    "cuda": {
        (2, 64): Blocks(64, rows=128, threads=128, stages=2),
        (2, 128): Blocks(64, rows=64, threads=128, stages=2),
        (2, 256): Blocks(32, rows=64, threads=128, stages=2),
        (4, 64): Blocks(32, rows=64, threads=256),
        (4, 128): Blocks(16, rows=32, threads=256),
        (4, 256): Blocks(16, rows=16, threads=256),
    },
}
# Its matrix units need half the registers for their operands that gfx11's need.
PREFILL["rocm gfx12"] = PREFILL[""] | {
    (2, 128): Blocks(32, rows=64, threads=256),
    (2, 256): Blocks(16, rows=32, threads=256),
}


def chosen(table: dict, target: Target, itemsize: int, width: int) -> Blocks:
    """The entry of DECODE or PREFILL for a cache of numbers of `itemsize` bytes and heads of
    `width`, at most 256.
    """
    sizes = table[max((name for name in table if str(target).startswith(name)), key=len)]
    return sizes[min(key for key in sizes if key[0] == itemsize and key[1] >= width)]
