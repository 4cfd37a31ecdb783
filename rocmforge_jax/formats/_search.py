"""ggml's searches for the scale and minimum of least weighted squared error, in NumPy.

Many blocks are searched at once.

Arrays are float32 [elements of a block, blocks]. Every step and every sum is done in C's order and
in float32: another order rounds differently and may settle on another scale. Source: ggml-quants.c
(quantize_row_q4_0_impl and its siblings, make_qx_quants, make_qkx3_quants).
"""

import numpy as np

#: Largest magnitude that counts as zero: GROUP_MAX_EPS for `symmetric`; far below any float16 scale
#: for `asymmetric`.
ZERO, NO_SPAN = np.float32(1e-15), np.float32(1e-30)


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
        sum_xq, sum_qq = _sum(weights * x * q), _sum(weights * q * q)
        better = (sum_qq > 0) & (sum_xq * sum_xq > score * sum_qq)
        new_d = _divide(sum_xq, sum_qq, better)
        d, score, codes = _choose(better, (new_d, new_d * sum_xq, q), (d, score, codes))
    return np.where(zero, 0, d), np.where(zero, 0, codes + lowest).astype(np.uint8)


def asymmetric(x, weights, bits):
    """Fits x ~ d * q + m with integers q from 0 to 2^bits - 1 and m at most 0.

    Returns:
        d and m, [blocks] each, and the codes q, uint8.
    """
    top = 2**bits - 1
    m, high = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    solid = high - m > NO_SPAN
    sum_w, sum_x = _sum(weights), _sum(weights * x)
    inverse = _divide(np.float32(top), high - m, solid)
    d, codes = _divide(np.float32(1), inverse, solid), _codes(x, m, inverse, top)
    error = _error(x, weights, d, m, codes)
    for step in range(37):
        # As in C, each step starts from the best minimum so far.
        levels = np.float32(-0.9) + np.float32(0.05) * np.float32(step) + np.float32(top)
        q = _codes(x, m, _divide(levels, high - m, solid), top)
        new_d, new_m, solved = _least_squares(
            _sum(weights * q), _sum(weights * q * q), _sum(weights * q * x), sum_w, sum_x
        )
        new_error = _error(x, weights, new_d, new_m, q)
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


def _error(x, weights, d, m, codes):
    difference = d * codes + m - x
    return _sum(weights * (difference * difference))


def _sum(terms):
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
