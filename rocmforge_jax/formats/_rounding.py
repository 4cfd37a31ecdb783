"""Steps that the quantisers share: rounding as in C, packing, and work in pieces. In NumPy."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np

#: Elements quantised at once: as many as stay in the cache.
PIECE = 1 << 17


def in_pieces(block: int, quantize_blocks: Callable) -> Callable:
    """Makes the quantiser of rows from one of blocks.

    Args:
        block: Elements of a block.
        quantize_blocks: float32 [blocks, block] -> the fields, [blocks, ...] each.

    Returns:
        A function of float32 [rows, elements] that returns the same fields for all blocks.
    """

    def quantize_rows(rows):
        blocks = rows.reshape(-1, block)
        step = PIECE // block
        starts = range(0, len(blocks), step)
        found = in_threads(quantize_blocks, [(blocks[start : start + step],) for start in starts])
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    return quantize_rows


def in_threads(function: Callable, pieces: Sequence[tuple]) -> list:
    """Calls a function for each tuple of arguments, on all cores; NumPy computes in parallel."""
    if len(pieces) < 2:
        return [function(*piece) for piece in pieces]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # A copy of the context has the caller's np.errstate.
        runs = [pool.submit(copy_context().run, function, *piece) for piece in pieces]
        return [run.result() for run in runs]


def columns(blocks, group: int):
    """Brings the elements of a group to the first axis: [blocks, n] -> [group, groups]."""
    return np.ascontiguousarray(blocks.reshape(-1, group).T)


def nearest(x):
    """Rounds to int32, ties to even, with ggml's trick: NaN gives 0 and large numbers wrap."""
    return ((x + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def away_from_zero(x):
    """Rounds to whole numbers, ties away from zero, as C's roundf does."""
    whole = np.trunc(x)
    return whole + np.copysign(np.abs(x - whole) >= 0.5, x)


def inverse(d):
    """Computes 1/d, and 0 where d is 0 or so small that 1/d is infinite."""
    result = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    return np.where(np.isfinite(result), result, 0)


def ratio(top, largest):
    """Computes top / largest, and 0 where `largest` is 0 or the ratio infinite."""
    result = np.divide(np.float32(top), largest, out=np.zeros_like(largest), where=largest != 0)
    return np.where(np.isfinite(result), result, 0)


def extreme(x, axis: int):
    """Returns the first element of the largest magnitude along an axis, which stays, as 1."""
    return np.take_along_axis(x, np.abs(x).argmax(axis, keepdims=True), axis)


def pack(codes, bits: int, run: int, dtype="uint8"):
    """Packs codes in NumPy, the inverse of `_bits.unpack`.

    Args:
        codes: [blocks, m], 0 to 2^bits - 1.
        bits: Bits of a code.
        run: Words of a run.
        dtype: Of the words.

    Returns:
        Words, [blocks, m * bits / width].
    """
    dtype = np.dtype(dtype)
    shifts = np.arange(0, 8 * dtype.itemsize, bits, dtype=dtype)[:, None]
    runs = codes.astype(dtype).reshape(len(codes), -1, len(shifts), run)
    return np.bitwise_or.reduce(runs << shifts, axis=2).reshape(len(codes), -1)
