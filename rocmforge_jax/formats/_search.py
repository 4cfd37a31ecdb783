"""ggml's searches for the scale and minimum of least weighted squared error, in NumPy.

Many blocks are searched at once.

Arrays are float32 [elements of a block, blocks]. Every step and every sum is done in C's order and
in float32: another order rounds differently and may settle on another scale. Source: ggml-quants.c
(quantize_row_q4_0_impl and its siblings, make_qx_quants, make_q3_quants, make_qkx2_quants,
make_qkx3_quants).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rocmforge_jax.formats._rounding import nearest, ratio

#: Largest magnitude that counts as zero: GROUP_MAX_EPS.
ZERO = np.float32(1e-15)


class Steps(NamedTuple):
    """The scales that `asymmetric` tries: those of 2^bits - 1 + start + i * step levels.

    Attributes:
        start: The first difference.
        step: Between differences.
        count: How many are tried.
        error: The difference of a value -> what is weighted and summed.
    """

    start: float
    step: float
    count: int
    error: Callable = np.square


#: Those of the legacy types.
LEGACY = Steps(-0.9, 0.05, 37)


def row_weights(rows):
    """Computes ggml's weights where all importances are 1: sqrt(mean square of the row + x^2).

    Takes and returns float32 [..., elements].
    """
    squares = rows * rows
    mean = np.cumsum(squares, axis=-1)[..., -1:] / np.float32(rows.shape[-1])
    return np.sqrt(mean + squares)


def symmetric(x, weights, bits):
    """Fits x ~ d * q with integers q from -2^(bits - 1).

    Returns:
        d [blocks], and the codes, uint8, which are q + 2^(bits - 1). In a block of zeros all are 0.
    """
    lowest = 2 ** (bits - 1)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    zero = np.abs(extreme) < ZERO
    extreme = np.where(zero, np.float32(1), extreme)
    # NaN stays where sums overflow: the values are too large for the type, and the caller says so.
    d, score, codes = np.full_like(extreme, np.nan), np.full_like(extreme, -1), np.zeros_like(x)
    for step in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(lowest) + np.float32(0.1) * np.float32(step)) / extreme
        q = np.clip(np.rint(inverse * x), -lowest, lowest - 1)
        sum_xq, sum_qq = summed(weights * x * q), summed(weights * q * q)
        better = (sum_qq > 0) & (sum_xq * sum_xq > score * sum_qq)
        new_d = _divide(sum_xq, sum_qq, better)
        d, score, codes = _choose(better, (new_d, new_d * sum_xq, q), (d, score, codes))
    return np.where(zero, 0, d), np.where(zero, 0, codes + lowest).astype(np.uint8)


def refined(x, bits):
    """Fits x ~ d * q as `symmetric` does, with weights x^2, by changing one code after the other.

    Returns:
        d [blocks], and the codes, as `symmetric` does.
    """
    lowest = 2 ** (bits - 1)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    zero = np.abs(extreme) < ZERO
    extreme = np.where(zero, np.float32(1), extreme)
    q = np.clip(np.rint(-np.float32(lowest) / extreme * x), -lowest, lowest - 1)
    weights = x * x
    sums = summed(weights * x * q), summed(weights * q * q)
    for _ in range(5):
        before = q.copy()
        for i in range(len(x)):
            q[i], sums = _improved(x[i], weights[i], q[i], sums, lowest)
        if np.array_equal(q, before):
            break
    d = _divide(*sums, sums[1] > 0)
    return np.where(zero, 0, d), np.where(zero, 0, q + lowest).astype(np.uint8)


def _improved(x, w, q, sums, lowest):
    """Improves the code of one element of each block, with the codes of all others fixed.

    Args:
        x: The element of each block.
        w: Its weight in the squared error.
        q: Its present code.
        sums: The weighted sums of x * q and q * q over each block.
        lowest: Minus the lowest code.

    Returns:
        The new codes and the new sums.
    """
    sum_xq, sum_qq = sums
    rest_xq, rest_qq = sum_xq - w * x * q, sum_qq - w * q * q
    possible = rest_xq > 0
    new = nearest(_divide(x * rest_qq, rest_xq, possible))
    new = np.clip(new, -lowest, lowest - 1).astype(np.float32)
    new_xq, new_qq = rest_xq + w * x * new, rest_qq + w * new * new
    better = possible & (new != q) & (new_qq > 0)
    better &= new_xq * new_xq * sum_qq > sum_xq * sum_xq * new_qq
    q, sum_xq, sum_qq = _choose(better, (new, new_xq, new_qq), (q, sum_xq, sum_qq))
    return q, (sum_xq, sum_qq)


def asymmetric(x, weights, bits, steps=LEGACY):
    """Fits x ~ d * q + m with integers q from 0 to 2^bits - 1 and m at most 0.

    Returns:
        d and m, [blocks] each, and the codes q, uint8.
    """
    top = 2**bits - 1
    m, high = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    solid = high > m
    sum_w, sum_x = summed(weights), summed(weights * x)
    d = _divide(np.float32(1), _divide(np.float32(top), high - m, solid), solid)
    codes = _codes(x, m, ratio(top, high - m), top)
    error = _error(x, weights, d, m, codes, steps)
    for step in range(steps.count):
        # As in C, each step starts from the best minimum so far.
        levels = np.float32(steps.start) + np.float32(steps.step) * np.float32(step)
        q = _codes(x, m, ratio(levels + np.float32(top), high - m), top)
        new_d, new_m, solved = _least_squares(
            summed(weights * q), summed(weights * q * q), summed(weights * q * x), sum_w, sum_x
        )
        new_error = _error(x, weights, new_d, new_m, q, steps)
        better = solid & solved & (new_error < error)
        d, m, error, codes = _choose(better, (new_d, new_m, new_error, q), (d, m, error, codes))
    return d, m, codes.astype(np.uint8)


def _codes(x, m, inverse, top):
    return np.clip(np.rint(inverse * (x - m)), 0, top)


def _least_squares(sum_q, sum_qq, sum_qx, sum_w, sum_x):
    """The best d and m for given codes, with m at most 0. -> d, m, where there is a solution."""
    determinant = sum_w * sum_qq - sum_q * sum_q
    solved = determinant > 0
    d = _divide(sum_w * sum_qx - sum_x * sum_q, determinant, solved)
    m = _divide(sum_qq * sum_x - sum_q * sum_qx, determinant, solved)
    return np.where(m > 0, _divide(sum_qx, sum_qq, solved), d), np.minimum(m, 0), solved


def _error(x, weights, d, m, codes, steps):
    return summed(weights * steps.error(d * codes + m - x))


def summed(terms):
    """[elements, blocks] -> [blocks], first element to last."""
    total = terms[0].copy()
    for term in terms[1:]:
        total += term
    return total


def _divide(a, b, where):
    """Divides a by b where `where` is true; 0 elsewhere."""
    return np.divide(a, b, out=np.zeros_like(b), where=where)


def _choose(better, new, old):
    return tuple(np.where(better, n, o) for n, o in zip(new, old, strict=True))
