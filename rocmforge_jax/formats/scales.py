"""Describes how blocks store the scales of their groups, by name: `SCHEMES`.

A format's declaration names its scheme. The same function serves `affine`, for one block, and
`quant.word_packed`, for all blocks of a matrix. So leading axes are arbitrary.

The C++ library has its own copies under the same names, because it repacks files without JAX. A
test compares the two.
"""

from collections.abc import Callable
from typing import NamedTuple

from rocmforge_jax.formats._bits import i8, pack, unpack
from rocmforge_jax.formats._lazy import jax, jnp


class Scheme(NamedTuple):
    """One way to store scales.

    Attributes:
        unpack: The fields with a block's scales, [..., n] each -> scales [..., groups]. They are
            int8 or uint8, or uint16 for pairs of a scale (low byte) and a minimum (high byte).
        pack: The inverse, scales -> tuple of fields.
        dtype: The dtype of the scales; None for the field's dtype.
        groups: The number of scales in the fields; None for one per byte.
    """

    unpack: Callable
    pack: Callable
    dtype: str | None = None
    groups: int | None = None


def scales_and_minima(packed):
    """Unpacks the scales of Q4_K and Q5_K.

    The upper two bits of groups 4 to 7 are stored above the 6-bit numbers of groups 0 to 3.

    Args:
        packed: uint8 [..., 12].

    Returns:
        Scales and minima, uint8 [..., 8] each, 0 to 63.
    """
    low_scales, low_minima, rest = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    high_scales = (rest & 15) | ((low_scales >> 6) << 4)
    high_minima = (rest >> 4) | ((low_minima >> 6) << 4)
    return jnp.concatenate([low_scales & 63, high_scales], axis=-1), jnp.concatenate(
        [low_minima & 63, high_minima], axis=-1
    )


def _pack_scales_and_minima(scales, minima):
    low = [six[..., :4] | ((six[..., 4:] >> 4) << 6) for six in (scales, minima)]
    rest = (scales[..., 4:] & 15) | ((minima[..., 4:] & 15) << 4)
    return jnp.concatenate([*low, rest], axis=-1)


def six_bits(packed):
    """Unpacks the scales of Q3_K: uint8 [..., 12] -> int8 [..., 16], -32 to 31."""
    return i8(unpack(packed[..., :8], 4, 8) | (unpack(packed[..., 8:], 2, 4) << 4), 32)


def _pack_six_bits(scales):
    six = _unsigned(scales)
    return jnp.concatenate([pack(six & 15, 4, 8, "uint8"), pack(six >> 4, 2, 4, "uint8")], axis=-1)


def high_and_low(high, low):
    """Unpacks the scales of IQ4_XS: uint16 [..., 1], uint8 [..., 4] -> int8 [..., 8], -32 to 31."""
    return i8(unpack(low, 4, 1) | (unpack(high, 2, 1) << 4).astype(jnp.uint8), 32)


def _pack_high_and_low(scales):
    six = _unsigned(scales)
    return pack(six >> 4, 2, 1, "uint16"), pack(six & 15, 4, 1, "uint8")


def _unsigned(scales):
    """Converts int8 scales from -32 to 31 to six bits, 0 to 63."""
    return (scales + jnp.int8(32)).astype(jnp.uint8)


def pair(low, high, dtype):
    """Joins two arrays into one of unsigned words, with `low` in the lower half."""
    return jax.lax.bitcast_convert_type(jnp.stack([low, high], axis=-1), dtype)


def halves(words, dtype):
    """Inverts `pair`: words -> (lower halves, upper halves) as `dtype`."""
    both = jax.lax.bitcast_convert_type(words, dtype)
    return both[..., 0], both[..., 1]


#: "bytes": one field with one byte for each group. The others are named after their functions.
SCHEMES: dict[str, Scheme] = {
    "bytes": Scheme(lambda field: field, lambda scales: (scales,)),
    "six_bit_pairs": Scheme(
        lambda packed: pair(*scales_and_minima(packed), jnp.uint16),
        lambda pairs: (_pack_scales_and_minima(*halves(pairs, jnp.uint8)),),
        "uint16",
        8,
    ),
    "six_bits": Scheme(six_bits, lambda scales: (_pack_six_bits(scales),), "int8", 16),
    "high_and_low": Scheme(high_and_low, _pack_high_and_low, "int8", 8),
}
