"""Quantises to the K types: groups of 16 or 32 elements, then their scales, then all codes again.

To the byte as ggml-quants.c does without an importance matrix (quantize_row_q2_K_ref and its
siblings). A quantiser takes blocks, float32 [blocks, 256], and returns the fields in file order.
"""

from functools import partial

import numpy as np

from rocmforge_jax.formats._rounding import columns, extreme, in_pieces, nearest, pack, ratio
from rocmforge_jax.formats._search import ZERO, Steps, asymmetric, refined, summed, symmetric

BLOCK = 256


def _with_minima(blocks, group, bits, scale_top, weights_of, steps):
    """Quantises to d * scale * q - dmin * minimum.

    Args:
        blocks: float32 [blocks, 256].
        group: Elements with a scale and a minimum.
        bits: Bits of a code.
        scale_top: The largest scale and minimum.
        weights_of: x [group, groups] -> the weights of their squared errors.
        steps: Of the search.

    Returns:
        d and dmin, float16 [blocks]; scales and minima, uint8 [blocks, groups]; codes, uint8
        [blocks, 256].
    """
    x = columns(blocks, group)
    d, m, codes = asymmetric(x, weights_of(x), bits, steps)
    block_d, scales = _to_integers(d.reshape(len(blocks), -1), scale_top)
    block_m, minima = _to_integers(-m.reshape(len(blocks), -1), scale_top)
    step, low = (
        (whole.astype(np.float32)[:, None] * parts).reshape(-1)
        for whole, parts in ((block_d, scales), (block_m, minima))
    )
    codes = _again(x + low, step, codes, 0, 2**bits - 1)
    return block_d, block_m, scales, minima, _by_blocks(codes)


def _to_integers(values, top):
    """Quantises scales, [blocks, groups], to integers from 0 to `top` and one float16 a block."""
    largest = np.maximum(values.max(axis=1), 0)
    integers = nearest(ratio(top, largest)[:, None] * values).astype(np.uint8)
    return (largest / np.float32(top)).astype(np.float16), np.minimum(integers, top)


def _again(x, step, codes, lowest, highest):
    """Computes the codes of x with the steps that are stored, where these are not 0.

    Codes count from 0 at `lowest`.
    """
    known = step != 0
    quotients = np.divide(x, step, out=np.zeros_like(x), where=known)
    new = np.clip(nearest(quotients), lowest, highest) - lowest
    return np.where(known, new.astype(np.uint8), codes)


def _by_blocks(codes):
    """[group, groups] -> [blocks, 256]."""
    return codes.T.reshape(-1, BLOCK)


def _q2_k(blocks):
    steps = Steps(-0.5, 0.1, 16, np.abs)
    d, dmin, scales, minima, codes = _with_minima(blocks, 16, 2, 15, np.abs, steps)
    return scales | (minima << 4), pack(codes, 2, 32), d, dmin


def _above_mean(x):
    """The weights of Q4_K and Q5_K: root mean square of the group plus magnitude."""
    return np.sqrt(summed(x * x) / np.float32(len(x))) + np.abs(x)


def _six_bit_pairs(scales, minima):
    """Packs the scales and minima of Q4_K and Q5_K: uint8 [blocks, 8] each -> [blocks, 12]."""
    low = [six[:, :4] | ((six[:, 4:] >> 4) << 6) for six in (scales, minima)]
    rest = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return np.concatenate([*low, rest], axis=1)


def _q4_k(blocks):
    steps = Steps(-1.0, 0.1, 21)
    d, dmin, scales, minima, codes = _with_minima(blocks, 32, 4, 63, _above_mean, steps)
    return d, dmin, _six_bit_pairs(scales, minima), pack(codes, 4, 32)


def _q5_k(blocks):
    steps = Steps(-0.5, 0.1, 16)
    d, dmin, scales, minima, codes = _with_minima(blocks, 32, 5, 63, _above_mean, steps)
    packed = _six_bit_pairs(scales, minima)
    return d, dmin, packed, pack(codes >> 4, 1, 32), pack(codes & 15, 4, 32)


def _signed(blocks, search, bits, scale_lowest):
    """Quantises to d * scale * q with signed scales, the extreme one at `scale_lowest`.

    Returns:
        d, float16 [blocks]; scales, int32 [blocks, groups]; codes, uint8 [blocks, 256].
    """
    d, codes = search(columns(blocks, 16))
    scales = d.reshape(len(blocks), -1)
    up = ratio(scale_lowest, extreme(scales, 1))
    integers = np.clip(nearest(up * scales), scale_lowest, -scale_lowest - 1)
    # NaN where sums overflow: the values are too large for the type, and the caller says so.
    finite = np.isfinite(scales).all(axis=1)
    block_d = np.where(finite, ratio(1, up[:, 0]), np.float32(np.nan)).astype(np.float16)
    step = (block_d.astype(np.float32)[:, None] * integers.astype(np.float32)).reshape(-1)
    half = 2 ** (bits - 1)
    return block_d, integers, _by_blocks(_again(columns(blocks, 16), step, codes, -half, half - 1))


def _q3_k(blocks):
    d, integers, codes = _signed(blocks, partial(refined, bits=3), 3, -32)
    # The stored scales of a block of zeros are 0, which stands for -32.
    six = np.where((integers == 0).all(axis=1, keepdims=True), 0, integers + 32).astype(np.uint8)
    packed = np.concatenate([pack(six & 15, 4, 8), pack(six >> 4, 2, 4)], axis=1)
    return pack(codes >> 2, 1, 32), pack(codes & 3, 2, 32), packed, d


def _q6_k(blocks):
    def search(x):
        d, codes = symmetric(x, x * x, 6)
        vanishing = np.repeat(np.abs(d).reshape(-1, 16).max(axis=1) < ZERO, 16)
        return np.where(vanishing, 0, d), np.where(vanishing, 0, codes)

    d, integers, codes = _signed(blocks, search, 6, -128)
    return pack(codes & 15, 4, 64), pack(codes >> 4, 2, 32), integers.astype(np.int8), d


def _q8_k(blocks):
    up = ratio(-127, extreme(blocks, 1))
    q = np.minimum(nearest(up * blocks), 127)
    sums = q.reshape(len(blocks), -1, 16).sum(axis=-1)
    return ratio(1, up[:, 0]), q.astype(np.int8), sums.astype(np.int16)


K_QUANTIZERS = {
    name: in_pieces(BLOCK, quantize_blocks)
    for name, quantize_blocks in {
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "Q8_K": _q8_k,
    }.items()
}
