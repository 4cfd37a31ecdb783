"""ggml's original formats with blocks of 32 elements.

Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_*).
"""

from rocmforge_jax.formats._bits import f32, i8, unpack
from rocmforge_jax.formats._lazy import jnp
from rocmforge_jax.formats.format import Affine, Field, Format, u8
from rocmforge_jax.formats.packing import Codes, WordPacking


def _nibbles(qs):
    """Unpacks uint8 [16] to uint8 [32]: all low nibbles, then all high nibbles."""
    return unpack(qs, bits=4, run=16)


def _five_bits(qh, qs):
    """Unpacks uint32, uint8 [16] to uint8 [32], 0 to 31. Bit i of qh is bit 4 of element i."""
    fifth = unpack(qh.reshape(1), bits=1, run=1).astype(jnp.uint8)
    return _nibbles(qs) | (fifth << 4)


_FOUR = (Codes("qs", bits=4, run=16),)
_FIVE = (*_FOUR, Codes("qh", bits=1, run=1))

Q4_0 = Format(
    "Q4_0",
    2,
    32,
    (Field("d", "float16"), u8("qs", 16)),
    affine=lambda d, qs: Affine(i8(_nibbles(qs), 8), f32(d)),
    packing=WordPacking(_FOUR, offset=8),
    note="d * (q - 8)",
)
Q4_1 = Format(
    "Q4_1",
    3,
    32,
    (Field("d", "float16"), Field("m", "float16"), u8("qs", 16)),
    affine=lambda d, m, qs: Affine(i8(_nibbles(qs)), f32(d), f32(m)),
    packing=WordPacking(_FOUR, m="m"),
    note="d * q + m",
)
Q5_0 = Format(
    "Q5_0",
    6,
    32,
    (Field("d", "float16"), Field("qh", "uint32"), u8("qs", 16)),
    affine=lambda d, qh, qs: Affine(i8(_five_bits(qh, qs), 16), f32(d)),
    packing=WordPacking(_FIVE, offset=16),
    note="d * (q - 16); bit i of qh is the fifth bit of element i",
)
Q5_1 = Format(
    "Q5_1",
    7,
    32,
    (Field("d", "float16"), Field("m", "float16"), Field("qh", "uint32"), u8("qs", 16)),
    affine=lambda d, m, qh, qs: Affine(i8(_five_bits(qh, qs)), f32(d), f32(m)),
    packing=WordPacking(_FIVE, m="m"),
    note="d * q + m; bit i of qh is the fifth bit of element i",
)
Q8_0 = Format(
    "Q8_0",
    8,
    32,
    (Field("d", "float16"), Field("qs", "int8", (32,))),
    affine=lambda d, qs: Affine(qs, f32(d)),
    packing=WordPacking((Codes("qs", bits=8, run=1),)),
    note="d * q",
)
Q8_1 = Format(
    "Q8_1",
    9,
    32,
    (Field("d", "float16"), Field("s", "float16"), Field("qs", "int8", (32,))),
    affine=lambda d, s, qs: Affine(qs, f32(d)),
    note="d * q; s = d * sum(q), for dot products. ggml uses it for activations",
)
FORMATS = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1)
