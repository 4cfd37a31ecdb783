"""Blocks of bytes, as a file holds them -> planes, in C++: `repack.cc`, by as many threads as there
are processors.
"""

import concurrent.futures
import ctypes
import dataclasses
import functools
import os
from pathlib import Path

import numpy as np

from pallas_kernels.packing import GROUP, Packing

#: How the scales of a block may lie, in the order of `enum Scales`. "bytes": one after the other,
#: as int8 or uint8. "six_bit_pairs": of Q4_K and Q5_K, a scale and a minimum; "six_bits": of Q3_K;
#: "high_and_low": of IQ4_XS, two fields.
SCALES = (None, "bytes", "six_bit_pairs", "six_bits", "high_and_low")
#: Bytes of blocks that a thread takes at a time.
PIECE = 4 << 20
#: What XLA takes an array of the host for as it is.
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Where the fields of a block are.

    block: elements; bytes: of a block. codes: (offset, bits, run) of each field, the lowest bits of
    the codes first, as `formats._bits.unpack` takes them; exchanged: whether bits 2 and 3 of a code
    then change places. d, m: offsets of float16 scales, None where there are none. scales: one of
    SCALES, which is at `at` and, for what has two fields, `more_at`.
    """

    block: int
    bytes: int
    codes: tuple[tuple[int, int, int], ...]
    d: int | None = None
    m: int | None = None
    scales: str | None = None
    at: int | None = None
    more_at: int | None = None
    exchanged: bool = False

    def numbers(self, packing: Packing) -> np.ndarray:
        """As `struct Blocks` has them."""

        def offsets(*many):
            return [-1 if offset is None else offset for offset in many]

        numbers = [
            self.block,
            self.bytes,
            packing.bits,
            *offsets(self.d, self.m),
            SCALES.index(self.scales),
        ]
        numbers += [
            *offsets(self.at, self.more_at),
            packing.halves,
            self.exchanged,
            len(self.codes),
        ]
        return np.array(
            numbers
            + [number for field in self.codes for number in field]
            + [0] * 3 * (2 - len(self.codes)),
            np.int64,
        )


def repack(
    library: Path, row_bytes: np.ndarray, blocks: Blocks, packing: Packing
) -> dict[str, np.ndarray]:
    """uint8 [N, row bytes] -> planes of a matrix [N, K], aligned for XLA.

    ValueError: rows that are no whole blocks.
    """
    rows, nbytes = row_bytes.shape
    if row_bytes.dtype != np.uint8 or nbytes % blocks.bytes or not row_bytes.flags.c_contiguous:
        found = f"{row_bytes.dtype} {list(row_bytes.shape)}"
        raise ValueError(
            f"rows are uint8, whole blocks of {blocks.bytes} bytes and contiguous, got {found}"
        )
    count = nbytes // blocks.bytes
    groups = count * blocks.block // GROUP
    shapes = {
        "codes": (rows, packing.bits, groups),
        "d": (rows, count),
        "scale": (rows, packing.halves, groups),
    }
    planes = {name: aligned(shapes[name], dtype) for name, dtype in packing.planes().items()}
    numbers, function = blocks.numbers(packing), _function(library)

    def one(start):
        part = slice(start, start + step)

        def address(name):
            return planes[name][part].ctypes.data if name in planes else None

        here = row_bytes[part]
        function(
            here.ctypes.data,
            len(here),
            count,
            numbers.ctypes.data,
            *map(address, ("codes", "d", "scale")),
        )

    step = max(1, PIECE // nbytes)
    if rows <= step:
        one(0)
    else:
        list(_threads().map(one, range(0, rows, step)))
    return planes


def aligned(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array like `numpy.empty`, at an address that XLA needs no copy for."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)


@functools.cache
def _threads():
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return concurrent.futures.ThreadPoolExecutor(count, "repack")


@functools.cache
def _function(library: Path):
    function = ctypes.CDLL(str(library)).rocmforge_repack
    pointer = ctypes.c_void_p
    function.argtypes = [
        pointer,
        ctypes.c_int64,
        ctypes.c_int64,
        pointer,
        pointer,
        pointer,
        pointer,
    ]
    function.restype = None
    return function
