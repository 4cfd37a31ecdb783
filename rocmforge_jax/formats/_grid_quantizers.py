"""Quantises to IQ2_S, IQ3_XXS and IQ3_S: magnitudes from a codebook ("grid"), signs, scales.

To the byte as ggml-quants.c does without an importance matrix (quantize_row_iq3_xxs_impl and its
siblings), but for one case: in a block of IQ3_S, ggml writes groups that follow a group of zeros in
the place of the zeros. Here they are written in their own place.

A search tries several scales for each group. Each entry of it (four or eight elements) becomes the
nearest entry of the grid, among those near the rounded magnitudes. Sums have C's order.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from rocmforge_jax.formats._rounding import columns, in_pieces, inverse, nearest, pack
from rocmforge_jax.formats._search import summed
from rocmforge_jax.formats.iq import grid

BLOCK = 256
#: GROUP_MAX_EPS_IQ2_S and GROUP_MAX_EPS_IQ3_XXS.
TINY = np.float32(1e-8)


class Search(NamedTuple):
    """How ggml searches the scales and entries of a type.

    Attributes:
        name: Of the grid.
        group: Elements with a scale.
        shells: How many of the smallest distances from a point its candidates have.
        steps: Scales that are tried on each side of the one that maps the largest magnitude to
            the top of the grid.
        step: Between them, as a difference of that top.
        again: Whether entries on the grid are rounded again too, with the best scale.
        zero: A group whose largest magnitude is below this counts as zeros.
    """

    name: str
    group: int
    shells: int
    steps: int
    step: float
    again: bool
    zero: np.float32


IQ2_S = Search("IQ2_S", 16, shells=1, steps=9, step=0.1, again=False, zero=TINY)
IQ3_XXS = Search("IQ3_XXS", 32, shells=2, steps=15, step=0.2, again=False, zero=TINY)
# The smallest float32 number: only zeros count as zeros.
IQ3_S = Search("IQ3_S", 32, shells=3, steps=9, step=0.2, again=True, zero=np.float32(1e-45))


class _Grid(NamedTuple):
    """A grid, whose magnitudes are 1, 3, 5, ... here, and the entries near every point.

    Attributes:
        levels: Magnitudes that an element may have.
        entries: float32 [elements of an entry, entries].
        index: The entry at a point, -1 where there is none: int32 [points].
        counts: Entries near a point that is no entry itself, else 0: int32 [points].
        near: Those entries, the nearest first, then by number: int32 [most, points].
    """

    levels: int
    entries: np.ndarray
    index: np.ndarray
    counts: np.ndarray
    near: np.ndarray


@functools.cache
def _prepared(name: str, shells: int) -> _Grid:
    """Finds the entries near each point: those at the smallest distances, ties included."""
    magnitudes = grid(name)
    values, codes = np.unique(magnitudes, return_inverse=True)
    codes = codes.reshape(magnitudes.shape)
    levels, width = len(values), magnitudes.shape[1]
    # The first element of a point changes fastest.
    points = np.array([*itertools.product(range(levels), repeat=width)], np.int32)[:, ::-1]
    products = points.astype(np.float32) @ codes.T.astype(np.float32)
    distances = np.square(points).sum(1)[:, None] + np.square(codes).sum(1) - 2 * products
    index = np.where(distances.min(axis=1) == 0, distances.argmin(axis=1), -1).astype(np.int32)
    counts, near = _neighbours(distances, index < 0, shells)
    entries = np.ascontiguousarray((2 * codes + 1).T.astype(np.float32))
    return _Grid(levels, entries, index, counts, near)


def _neighbours(distances, wanted, shells: int):
    """Finds the columns with the smallest distances of each row that is wanted.

    Returns:
        How many each row has, int32 [rows], and which, the nearest first, then the first: int32
        [most, rows].
    """
    reach = distances.min(axis=1, keepdims=True)
    for _ in range(shells - 1):
        reach = distances.min(axis=1, keepdims=True, where=distances > reach, initial=np.inf)
    inside = (distances <= reach) & wanted[:, None]
    counts = inside.sum(axis=1, dtype=np.int32)
    row, column = np.nonzero(inside)
    column = column[np.lexsort((distances[inside], row))]
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    near = np.zeros((counts.max(), len(counts)), np.int32)
    near[rank, row] = column
    return counts, near


def _points(x, up, known: _Grid):
    """Rounds magnitudes, [elements, entries], with the scales 1 / up [entries] -> their points."""
    codes = np.clip(nearest(np.float32(0.5) * (up * x - 1)), 0, known.levels - 1)
    powers = known.levels ** np.arange(len(x))
    return summed(codes * powers[:, None])


def _best(x, weights, scale, points, known: _Grid):
    """Finds the entry of least weighted squared error near each point -> their numbers.

    Args:
        x: Magnitudes, float32 [elements, entries].
        weights: Of their squared errors, like `x`.
        scale: float32 [entries].
        points: Where the grid has no entry, int [entries].
        known: The grid.
    """
    # Points with many entries near them come first, so that each pass has fewer of them.
    order = np.argsort(-known.counts[points], kind="stable")
    x, weights, scale, points = x[:, order], weights[:, order], scale[order], points[order]
    ends = len(points) - np.searchsorted(known.counts[points][::-1], np.arange(len(known.near)) + 1)
    best, error = np.zeros_like(points), np.full(len(points), np.inf, np.float32)
    for near, end in zip(known.near, ends, strict=True):
        if not end:
            break
        candidate = near[points[:end]]
        found = np.zeros(end, np.float32)
        for i, values in enumerate(known.entries):
            difference = scale[:end] * values[candidate] - x[i, :end]
            found += weights[i, :end] * difference * difference
        better = found < error[:end]
        best[:end], error[:end] = (
            np.where(better, candidate, best[:end]),
            np.where(better, found, error[:end]),
        )
    unsorted = np.empty_like(best)
    unsorted[order] = best
    return unsorted


def _entries(x, roots, up, scale, known: _Grid):
    """Finds the entry of the grid for each entry of magnitudes.

    Args:
        x: Magnitudes, float32 [elements, entries].
        roots: Weights of their squared errors in this search, like `x`.
        up: Brings magnitudes to those of the grid, float32 [entries].
        scale: Its inverse.
        known: The grid.

    Returns:
        Their numbers, int [entries], and which are not the rounded magnitudes themselves.
    """
    points = _points(x, up, known)
    numbers = known.index[points]
    off = np.flatnonzero(numbers < 0)
    numbers[off] = _best(x[:, off], roots[:, off], scale[off], points[off], known)
    moved = np.zeros(len(numbers), bool)
    moved[off] = True
    return numbers, moved


class _Groups:
    """Groups of magnitudes, float32 [elements, groups], and the weights of their squared errors."""

    def __init__(self, x, weights, known: _Grid):
        self.known, self.weights, self.weighted = known, weights, weights * x
        self.count = len(x) // len(known.entries)
        # As in C, the errors of an entry are weighted with the square root.
        self.x, self.roots = (self._by_entries(a) for a in (x, np.sqrt(weights)))

    def _by_entries(self, a):
        """[elements, groups] -> [elements of an entry, entries of all groups]."""
        parts = a.reshape(self.count, -1, a.shape[1]).swapaxes(0, 1)
        return np.ascontiguousarray(parts).reshape(parts.shape[0], -1)

    def entries(self, up, scale):
        """Returns what `_entries` finds with `up` and `scale`, [groups]: [count, groups] each."""
        up, scale = (np.tile(a, self.count) for a in (up, scale))
        found = _entries(self.x, self.roots, up, scale, self.known)
        return (a.reshape(self.count, -1) for a in found)

    def sums(self, numbers):
        """Returns the weighted sums of x * q and q * q for entries q, [groups] each."""
        q = self.known.entries[:, numbers].swapaxes(0, 1).reshape(self.weights.shape)
        return summed(self.weighted * q), summed(self.weights * q * q)


def _fit(x, weights, kind: Search):
    """Fits magnitudes ~ scale * entries of the grid.

    Args:
        x: float32 [elements, groups].
        weights: Of squared errors, like `x`.
        kind: How to search.

    Returns:
        The scales, float32 [groups], and the numbers of the entries, int [entries, groups]; both
        are 0 for a group of zeros.
    """
    known = _prepared(kind.name, kind.shells)
    groups, top = _Groups(x, weights, known), np.float32(2 * known.levels - 1)
    largest = x.max(axis=0)
    zero = largest < kind.zero
    largest = np.where(zero, np.float32(1), largest)
    scale, score = largest / top, np.zeros_like(largest)
    numbers = np.zeros((groups.count, len(largest)), known.index.dtype)
    moved = np.full(numbers.shape, kind.again)
    for step in range(-kind.steps, kind.steps + 1):
        up = (top + np.float32(step) * np.float32(kind.step)) / largest
        new, new_moved = groups.entries(up, 1 / up)
        sum_xq, sum_qq = groups.sums(new)
        better = (sum_qq > 0) & (sum_xq * sum_xq > score * sum_qq)
        scale = np.divide(sum_xq, sum_qq, out=scale, where=better)
        score = np.where(better, scale * sum_xq, score)
        numbers, moved = np.where(better, new, numbers), np.where(better, new_moved, moved)
    some = moved.any(axis=0)
    new, _ = groups.entries(1 / scale, scale)
    numbers = np.where(some if kind.again else moved, new, numbers)
    sum_xq, sum_qq = groups.sums(numbers)
    scale = np.divide(sum_xq, sum_qq, out=scale, where=some & (sum_qq > 0))
    return np.where(zero, 0, scale), np.where(zero, 0, numbers)


def _scales(scales, larger):
    """Quantises scales, [blocks, groups], to odd numbers of one float16 a block.

    Returns d times `larger`, which ggml found to reduce errors, and the 4-bit codes.
    """
    d = scales.max(axis=1) / np.float32(31)
    codes = nearest(np.float32(0.5) * (inverse(d)[:, None] * scales - 1))
    return (d * np.float32(larger)).astype(np.float16), np.clip(codes, 0, 15).astype(np.uint8)


def _found(negative, magnitudes, weights, kind: Search):
    """Fits groups with signs, [elements, groups] each, and arranges the results by blocks.

    Returns:
        Scales [blocks, groups], the numbers of entries [blocks, entries], and which elements are
        negative, [blocks, 256]. A group of zeros has no sign.
    """
    scales, numbers = _fit(magnitudes, weights, kind)
    negative = negative & (magnitudes.max(axis=0) >= kind.zero)
    blocks = magnitudes.size // BLOCK
    return (a.T.reshape(blocks, -1) for a in (scales[None], numbers, negative))


def _iq2_s(blocks):
    x = columns(blocks, IQ2_S.group)
    mean = summed(np.square(columns(blocks, BLOCK))) / np.float32(BLOCK)
    weights = np.repeat(np.float32(0.5) * mean, BLOCK // IQ2_S.group) + x * x
    scales, numbers, negative = _found(x < 0, np.abs(x), weights, IQ2_S)
    d, codes = _scales(scales, 0.9875)
    high = pack(numbers >> 8, 2, 1)
    return d, (numbers & 255).astype(np.uint8), pack(negative, 1, 1), high, pack(codes, 4, 1)


def _iq3_s(blocks):
    x = columns(blocks, IQ3_S.group)
    scales, numbers, negative = _found(x < 0, np.abs(x), x * x, IQ3_S)
    d, codes = _scales(scales, 1.033)
    high = pack(numbers >> 8, 1, 1)
    return d, (numbers & 255).astype(np.uint8), high, pack(negative, 1, 1), pack(codes, 4, 1)


def _evened(x, weights):
    """Changes the sign that matters least in each eight with an odd number of minus signs.

    Takes float32 [elements, groups]; returns the magnitudes, negative where the stored sign is
    wrong, and the stored signs, bool.
    """
    eights = (-1, 8, x.shape[1])
    negative = (x < 0).reshape(eights)
    odd = negative.sum(axis=1, keepdims=True) % 2 > 0
    least = (weights * x * x).reshape(eights).argmin(axis=1, keepdims=True)
    changed = np.zeros_like(negative)
    np.put_along_axis(changed, least, odd, axis=1)
    changed, negative = changed.reshape(x.shape), negative.reshape(x.shape)
    magnitudes = np.abs(x)
    return np.where(changed, -magnitudes, magnitudes), negative ^ changed


def _iq3_xxs(blocks):
    x = columns(blocks, IQ3_XXS.group)
    magnitudes, negative = _evened(x, x * x)
    scales, numbers, negative = _found(negative, magnitudes, x * x, IQ3_XXS)
    d, codes = _scales(scales, 1.0125)
    # The eighth sign of eight is the parity of the others.
    signs = pack(negative, 1, 1).astype(np.uint32).reshape(len(blocks), -1, 4) & 127
    words = np.bitwise_or.reduce(signs << np.array([0, 7, 14, 21], np.uint32), axis=2)
    return d, numbers.astype(np.uint8), words | codes.astype(np.uint32) << 28


#: By name: the quantiser of rows.
GRID_QUANTIZERS = {
    name: in_pieces(BLOCK, quantize_blocks)
    for name, quantize_blocks in (("IQ2_S", _iq2_s), ("IQ3_XXS", _iq3_xxs), ("IQ3_S", _iq3_s))
}
