"""The IQ formats: 256 elements whose magnitudes come from a fixed codebook ("grid").

An entry of a grid is eight or four magnitudes. The grids are loaded from the gguf package on first
use.

Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_iq*).
"""

import functools

import numpy as np

from rocmforge_jax.formats._bits import f32, unpack
from rocmforge_jax.formats._lazy import jax, jnp
from rocmforge_jax.formats.format import Affine, Field, Format, u8
from rocmforge_jax.formats.packing import Codes, WordPacking
from rocmforge_jax.formats.scales import high_and_low

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


@functools.cache
def grid(name: str) -> np.ndarray:
    """Returns the codebook of a format, int8 [entries, 8] or [entries, 4].

    The slow import of the gguf package is deferred to here.
    """
    from gguf import quants

    holder = getattr(quants, name)
    holder.init_grid()
    return holder.grid[0, 0].astype(np.int8)


def _take(table, index):
    """Looks up rows of a table. The indices are masked bits, which cannot be out of range."""
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _signed(magnitudes, signs):
    """Applies signs: int8 [n, entry], uint8 bits in element order -> int8 [n * entry].

    A set bit means minus.
    """
    flat = magnitudes.reshape(-1)
    return jnp.where(unpack(signs, 1, 1) > 0, -flat, flat)


def _even_signs(index):
    """Converts 7-bit indices to sign bytes, uint8. The eighth bit makes the parity even."""
    index = index.astype(jnp.uint8)
    return index | ((jax.lax.population_count(index) & 1) << 7)


def _odd_scale(d, n, divisor):
    """Returns the scale d * (2n + 1) / divisor, exact because the divisor is a power of two."""
    return f32(d) * (f32(2 * n + 1) / divisor)


def _high_bits(low, high):
    """Returns the indices `low | high << 8`, uint16."""
    return low.astype(jnp.uint16) | (high.astype(jnp.uint16) << 8)


def _signs_and_scale(d, words, divisor):
    """Unpacks uint32 [8] to sign bytes [32] and scales [8].

    A word consists of four 7-bit sign indices in the low bits and a 4-bit scale above them.
    """
    index = (words[:, None] >> jnp.array([[0, 7, 14, 21]], jnp.uint32)) & 127
    return _even_signs(index.reshape(-1)), _odd_scale(d, words >> 28, divisor)


def _iq2_xxs(d, qs):
    words = jax.lax.bitcast_convert_type(qs.reshape(8, 2, 2), jnp.uint32)
    signs, scale = _signs_and_scale(d, words[:, 1], 8)
    return Affine(_signed(_take(grid("IQ2_XXS"), unpack(words[:, 0], 8, 1)), signs), scale)


def _iq2_xs(d, qs, scales):
    codes = _signed(_take(grid("IQ2_XS"), qs & 511), _even_signs(qs >> 9))
    return Affine(codes, _odd_scale(d, unpack(scales, 4, 1), 8))


def _iq2_s(d, qs, signs, qh, scales):
    codes = _signed(_take(grid("IQ2_S"), _high_bits(qs, unpack(qh, 2, 1))), signs)
    return Affine(codes, _odd_scale(d, unpack(scales, 4, 1), 8))


def _iq3_xxs(d, qs, scales_and_signs):
    signs, scale = _signs_and_scale(d, scales_and_signs, 4)
    return Affine(_signed(_take(grid("IQ3_XXS"), qs), signs), scale)


def _iq3_s(d, qs, qh, signs, scales):
    codes = _signed(_take(grid("IQ3_S"), _high_bits(qs, unpack(qh, 1, 1))), signs)
    return Affine(codes, _odd_scale(d, unpack(scales, 4, 1), 1))


def _ternary_codes(index, minus):
    """Returns 8 * (grid - 1/8) where `minus`, else 8 * (grid + 1/8): int8 [32 * 8]."""
    return (
        8 * _take(grid("IQ1_S"), index) + jnp.where(minus, -1, 1).astype(jnp.int8)[:, None]
    ).reshape(-1)


def _three_bits(words):
    """Unpacks the lowest four 3-bit numbers of each word: uint16 [n] -> uint16 [4n]."""
    return ((words[:, None] >> jnp.array([[0, 3, 6, 9]], jnp.uint16)) & 7).reshape(-1)


def _iq1_s(d, qs, qh):
    minus = jnp.repeat(qh >> 15, 4) > 0
    return Affine(
        _ternary_codes(_high_bits(qs, _three_bits(qh)), minus), _odd_scale(d, (qh >> 12) & 7, 8)
    )


def _iq1_m(qs, qh, scales):
    high = unpack(qh, 4, 1)
    parts = (scales >> 12) << jnp.array([0, 4, 8, 12], jnp.uint16)
    d = jax.lax.bitcast_convert_type(parts[0] | parts[1] | parts[2] | parts[3], jnp.float16)
    return Affine(
        _ternary_codes(_high_bits(qs, high & 7), high > 7), _odd_scale(d, _three_bits(scales), 8)
    )


def _iq4_xs(d, scales_h, scales_l, qs):
    scales = high_and_low(scales_h.reshape(1), scales_l)
    return Affine(_take(IQ4_VALUES, unpack(qs, 4, 16)), f32(d) * f32(scales))


_D = Field("d", "float16")
_CODES = (Codes("qs", bits=4, run=16),)
_TABLE = tuple(IQ4_VALUES.tolist())
_EVEN = "the eighth sign of eight is their parity"

IQ2_XXS = Format(
    "IQ2_XXS",
    16,
    256,
    (_D, Field("qs", "uint16", (32,))),
    affine=_iq2_xxs,
    note=f"d * (2 * scale + 1) / 8 * grid; 8 groups of 32; {_EVEN}",
)
IQ2_XS = Format(
    "IQ2_XS",
    17,
    256,
    (_D, Field("qs", "uint16", (32,)), u8("scales", 8)),
    affine=_iq2_xs,
    note=f"d * (2 * scale + 1) / 8 * grid; 16 groups of 16; {_EVEN}",
)
IQ3_XXS = Format(
    "IQ3_XXS",
    18,
    256,
    (_D, u8("qs", 64), Field("scales_and_signs", "uint32", (8,))),
    affine=_iq3_xxs,
    note=f"d * (2 * scale + 1) / 4 * grid; 8 groups of 32; {_EVEN}",
)
IQ1_S = Format(
    "IQ1_S",
    19,
    256,
    (_D, u8("qs", 32), Field("qh", "uint16", (8,))),
    affine=_iq1_s,
    note="d * (2 * scale + 1) * (grid ± 1/8); 8 groups of 32; grid is -1, 0, 1",
)
IQ4_NL = Format(
    "IQ4_NL",
    20,
    32,
    (_D, u8("qs", 16)),
    affine=lambda d, qs: Affine(_take(IQ4_VALUES, unpack(qs, 4, 16)), f32(d)),
    packing=WordPacking(_CODES, table=_TABLE),
    note="d * one of 16 fixed int8 values",
)
IQ3_S = Format(
    "IQ3_S",
    21,
    256,
    (_D, u8("qs", 64), u8("qh", 8), u8("signs", 32), u8("scales", 4)),
    affine=_iq3_s,
    note="d * (2 * scale + 1) * grid; 8 groups of 32",
)
IQ2_S = Format(
    "IQ2_S",
    22,
    256,
    (_D, u8("qs", 32), u8("signs", 32), u8("qh", 8), u8("scales", 8)),
    affine=_iq2_s,
    note="d * (2 * scale + 1) / 8 * grid; 16 groups of 16",
)
IQ4_XS = Format(
    "IQ4_XS",
    23,
    256,
    (_D, Field("scales_h", "uint16"), u8("scales_l", 4), u8("qs", 128)),
    affine=_iq4_xs,
    packing=WordPacking(
        _CODES,
        table=_TABLE,
        scales=("scales_h", "scales_l"),
        scheme="high_and_low",
        scale="int8",
    ),
    note="d * (scale - 32) * one of 16 fixed int8 values; 8 groups of 32; 6-bit scales",
)
IQ1_M = Format(
    "IQ1_M",
    29,
    256,
    (u8("qs", 32), u8("qh", 16), Field("scales", "uint16", (4,))),
    affine=_iq1_m,
    note=(
        "as IQ1_S with 16 groups of 16; the f16 d is the upper four bits of each of the four scales"
    ),
)
FORMATS = (IQ2_XXS, IQ2_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, IQ1_M)
