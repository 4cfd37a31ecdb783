"""Converts the blocks of a file to planes with `repack.cc`, with one thread per processor.

It does not import JAX, so that a program can convert weights while it imports JAX.
"""

import concurrent.futures
import ctypes
import dataclasses
import functools
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from rocmforge_jax.cpp import huge_pages

#: Layouts of the small scales of a block, in the order of `enum Scales`. "bytes": consecutive int8
#: or uint8. "six_bit_pairs": scales and minima of Q4_K and Q5_K. "six_bits": scales of Q3_K.
#: "high_and_low": the two fields of IQ4_XS.
SCALES = (None, "bytes", "six_bit_pairs", "six_bits", "high_and_low")
#: The elements of a group, as in `pallas_kernels.packing`.
GROUP = 32
#: How many bytes of blocks a thread converts at a time.
PIECE = 4 << 20


class Planes(Protocol):
    """A description of planes: a `pallas_kernels.packing.Packing`, or a format's declaration."""

    @property
    def bits(self) -> int:
        """Bits per code."""
        ...

    @property
    def halves(self) -> int:
        """Scales per group."""
        ...

    def planes(self) -> dict[str, str]:
        """Returns the dtype of each plane, by name."""
        ...


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The fields of a block, with offsets in bytes.

    Attributes:
        block: Elements per block.
        bytes: Bytes per block.
        codes: (offset, bits, run) of each field of codes, the field with the lowest bits first. See
            `formats._bits.unpack`.
        d: Offset of the float16 scale, or None.
        m: Offset of the float16 minimum, or None.
        scales: Layout of the small scales, one of SCALES.
        at: Offset of the small scales, or None.
        more_at: Offset of their second field, or None.
        exchanged: Whether bits 2 and 3 of each code are swapped after unpacking.
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

    def numbers(self, packing: Planes) -> np.ndarray:
        """Returns the numbers of `struct Blocks` in repack.cc."""

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
    library: Path, row_bytes: np.ndarray, blocks: Blocks, packing: Planes
) -> dict[str, np.ndarray]:
    """Converts the blocks of a matrix to planes that are aligned for XLA.

    Args:
        library: The file of the compiled library.
        row_bytes: The blocks, uint8 [N, bytes per row].
        blocks: The fields of a block.
        packing: The packing of the planes.

    Returns:
        The planes of the matrix [N, K].

    Raises:
        ValueError: Rows do not consist of whole blocks.
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
    planes = {
        name: huge_pages.empty(shapes[name], dtype) for name, dtype in packing.planes().items()
    }
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
