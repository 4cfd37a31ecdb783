"""Quantises to the types of four bits with tables, of one and two bits, and of three values.

To the byte as ggml-quants.c does without an importance matrix (quantize_iq4_nl and
quantize_row_*_ref). A quantiser takes blocks, float32 [blocks, elements], and returns the fields in
file order.
"""

import numpy as np

from rocmforge_jax.formats._rounding import (
    away_from_zero,
    columns,
    extreme,
    in_pieces,
    inverse,
    nearest,
    pack,
)
from rocmforge_jax.formats._search import ZERO, summed
from rocmforge_jax.formats.iq import IQ4_VALUES
from rocmforge_jax.formats.mx import multiples

_VALUES = IQ4_VALUES.astype(np.float32)
#: The code nearest to h / 2 and to the numbers above it, by h + 256: middles are multiples of 1/2.
_CODES = np.searchsorted(_VALUES[1:] + _VALUES[:-1], np.arange(-256, 256), side="right").astype(
    np.uint8
)
#: The largest number that NVFP4 holds: the largest E4M3 number times 6.
_NVFP4_MAX = 448 * 6


def _nearest_iq4(x):
    """Finds the nearest values of IQ4, the larger one where two are as near -> codes."""
    halves = np.floor(np.clip(x, -128, np.float32(127.5)) * 2)
    return _CODES[halves.astype(np.intp) + 256]


def _iq4_scales(x):
    """Searches the scales of least squared error, weighted with x^2: [32, groups] -> [groups]."""
    largest = extreme(x, 0)[0]
    zero = np.abs(largest) < ZERO
    largest = np.where(zero, np.float32(1), largest)
    weights = x * x
    d = score = np.zeros_like(largest)
    first = 1 / (-largest / _VALUES[0])
    for step in (None, *range(-7, 8)):
        up = first if step is None else (np.float32(step) + _VALUES[0]) / largest
        q = _VALUES[_nearest_iq4(up * x)]
        sum_xq, sum_qq = summed(weights * q * x), summed(weights * q * q)
        better = sum_qq > 0
        if step is not None:
            better &= sum_xq * sum_xq > score * sum_qq
        new = np.divide(sum_xq, sum_qq, out=np.zeros_like(sum_xq), where=better)
        d, score = np.where(better, new, d), np.where(better, new * sum_xq, score)
    return np.where(zero, 0, d)


def _iq4_nl(blocks):
    d = _iq4_scales(columns(blocks, 32))
    codes = _nearest_iq4(inverse(d)[:, None] * blocks)
    return d.astype(np.float16), pack(codes, 4, 16)


def _iq4_xs(blocks):
    scales = _iq4_scales(columns(blocks, 32)).reshape(len(blocks), -1)
    d = -extreme(scales, 1) / np.float32(32)
    integers = np.clip(nearest(inverse(d) * scales), -32, 31)
    step = d * integers.astype(np.float32)
    codes = _nearest_iq4(np.repeat(inverse(step), 32, axis=1) * blocks)
    six = (integers + 32).astype(np.uint8)
    high, low = pack(six >> 4, 2, 1, "uint16"), pack(six & 15, 4, 1)
    return d[:, 0].astype(np.float16), high, low, pack(codes, 4, 16)


def _ternary(blocks):
    """Computes the scales [blocks] and the codes, 0 to 2, of TQ1_0 and TQ2_0."""
    d = np.abs(blocks).max(axis=1)
    codes = away_from_zero(blocks * inverse(d)[:, None]) + 1
    return d.astype(np.float16), codes.astype(np.uint8)


def _pack_trits(codes, run, digits):
    """Packs base-3 digits, the inverse of `ternary._trits`: uint8 [blocks, m] -> [blocks, n]."""
    runs = codes.reshape(len(codes), -1, digits, run).astype(np.uint16)
    powers = np.array([81, 27, 9, 3, 1][:digits], np.uint16)[:, None]
    number = (runs * powers).sum(axis=2, dtype=np.uint16)
    return ((number * 256 + 242) // 243).astype(np.uint8).reshape(len(codes), -1)


def _tq1_0(blocks):
    d, codes = _ternary(blocks)
    parts = codes[:, :160], codes[:, 160:240], codes[:, 240:]
    first, second, last = (
        _pack_trits(part, run, digits)
        for part, run, digits in zip(parts, (32, 16, 4), (5, 5, 4), strict=True)
    )
    return np.concatenate([first, second], axis=1), last, d


def _tq2_0(blocks):
    d, codes = _ternary(blocks)
    return pack(codes, 2, 32), d


def _q1_0(blocks):
    d = summed(np.abs(columns(blocks, 128))) / np.float32(128)
    return d.astype(np.float16), pack(blocks >= 0, 1, 1)


def _q2_0(blocks):
    d = np.abs(blocks).max(axis=1)
    codes = np.clip(away_from_zero(blocks * inverse(d)[:, None]) + 1, 0, 3)
    return d.astype(np.float16), pack(codes, 2, 1)


def nearest_e2m1(x, half_scale):
    """Finds the nearest of the 16 codes for each element, the first one where two are as near.

    ggml's best_index_mxfp4 does the same.
    """
    best, error = np.zeros(x.shape, np.uint8), np.abs(x)
    doubled = multiples(1, 8)
    for code, value in enumerate([*doubled, *-doubled]):
        new = np.abs(value * half_scale - x)
        best, error = np.where(new < error, np.uint8(code), best), np.minimum(new, error)
    return best


def _e4m3(x):
    """Rounds to unsigned E4M3 as ggml does: float32, 0 to 448 -> codes, uint8.

    Ties go up, and all numbers from 256 on become the largest, 448.
    """
    bits = x.view(np.int32)
    normal = ((bits >> 19) + 1 >> 1) - ((127 - 7) << 3)
    subnormal = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    normal = np.where(normal < 0x78, normal, 0x7E)
    return np.where(x < 2.0**-6, subnormal, normal).astype(np.uint8)


def _nvfp4(blocks):
    groups = blocks.reshape(-1, 16)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    if largest.max() > _NVFP4_MAX:
        raise ValueError(
            f"values up to {largest.max():g} are too large for NVFP4, which ends at {_NVFP4_MAX}:"
            " divide the tensor by a scale"
        )
    d = _e4m3(largest / np.float32(6))
    magnitudes = multiples(3, 128) * np.float32(2.0**-10)
    codes = nearest_e2m1(groups, magnitudes[d])
    return d.reshape(-1, 4), pack(codes.reshape(len(blocks), -1), 4, 8)


#: By name: the elements of a block, and the quantiser of blocks.
SMALL_QUANTIZERS = {
    name: in_pieces(block, quantize_blocks)
    for name, block, quantize_blocks in (
        ("IQ4_NL", 32, _iq4_nl),
        ("IQ4_XS", 256, _iq4_xs),
        ("TQ1_0", 256, _tq1_0),
        ("TQ2_0", 256, _tq2_0),
        ("Q1_0", 128, _q1_0),
        ("Q2_0", 64, _q2_0),
        ("NVFP4", 64, _nvfp4),
    )
}
