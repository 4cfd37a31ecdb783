"""The K-quants: super-blocks of 256 elements, in groups of 16 or 32 with small integer scales.

One or two float16 numbers scale the groups' scales and minima.

Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_*_K, get_scale_min_k4).
"""

from rocmforge_jax.formats._bits import f32, i8, unpack
from rocmforge_jax.formats.format import Affine, Field, Format, u8
from rocmforge_jax.formats.packing import Codes, WordPacking
from rocmforge_jax.formats.scales import scales_and_minima, six_bits


def _q2_k(scales, qs, d, dmin):
    return Affine(i8(unpack(qs, 2, 32)), f32(d) * f32(scales & 15), -f32(dmin) * f32(scales >> 4))


def _q3_k(hmask, qs, scales, d):
    high = unpack(hmask, 1, 32)
    return Affine(i8(unpack(qs, 2, 32) | (high << 2), 4), f32(d) * f32(six_bits(scales)))


def _six_bit_pairs(codes, d, dmin, scales):
    group_scales, group_minima = scales_and_minima(scales)
    return Affine(i8(codes), f32(d) * f32(group_scales), -f32(dmin) * f32(group_minima))


def _q4_k(d, dmin, scales, qs):
    return _six_bit_pairs(unpack(qs, 4, 32), d, dmin, scales)


def _q5_k(d, dmin, scales, qh, qs):
    return _six_bit_pairs(unpack(qs, 4, 32) | (unpack(qh, 1, 32) << 4), d, dmin, scales)


def _q6_k(ql, qh, scales, d):
    return Affine(i8(unpack(ql, 4, 64) | (unpack(qh, 2, 32) << 4), 32), f32(d) * f32(scales))


_D, _DMIN = Field("d", "float16"), Field("dmin", "float16")
_TWO = Codes("qs", bits=2, run=32)
_FOUR = Codes("qs", bits=4, run=32)


def _packing_of_pairs(*codes):
    """Returns the packing of Q4_K and Q5_K."""
    return WordPacking(codes, m="dmin", scales=("scales",), scheme="six_bit_pairs", scale="bytes")


Q2_K = Format(
    "Q2_K",
    10,
    256,
    (u8("scales", 16), u8("qs", 64), _D, _DMIN),
    affine=_q2_k,
    packing=WordPacking(
        (_TWO,), m="dmin", scales=("scales",), scheme="bytes", scale="nibbles", halves=2
    ),
    note="d * scale * q - dmin * min; 16 groups of 16; scale and min are nibbles of one byte",
)
Q3_K = Format(
    "Q3_K",
    11,
    256,
    (u8("hmask", 32), u8("qs", 64), u8("scales", 12), _D),
    affine=_q3_k,
    packing=WordPacking(
        (_TWO, Codes("hmask", bits=1, run=32)),
        offset=4,
        scales=("scales",),
        scheme="six_bits",
        scale="int8",
        halves=2,
    ),
    note="d * (scale - 32) * (q - 4); 16 groups of 16; 6-bit scales; hmask holds the third bits",
)
Q4_K = Format(
    "Q4_K",
    12,
    256,
    (_D, _DMIN, u8("scales", 12), u8("qs", 128)),
    affine=_q4_k,
    packing=_packing_of_pairs(_FOUR),
    note="d * scale * q - dmin * min; 8 groups of 32; 6-bit scales and mins",
)
Q5_K = Format(
    "Q5_K",
    13,
    256,
    (_D, _DMIN, u8("scales", 12), u8("qh", 32), u8("qs", 128)),
    affine=_q5_k,
    packing=_packing_of_pairs(_FOUR, Codes("qh", bits=1, run=32)),
    note="as Q4_K, with a fifth bit in qh",
)
Q6_K = Format(
    "Q6_K",
    14,
    256,
    (u8("ql", 128), u8("qh", 64), Field("scales", "int8", (16,)), _D),
    affine=_q6_k,
    packing=WordPacking(
        (Codes("ql", bits=4, run=64), Codes("qh", bits=2, run=32)),
        offset=32,
        scales=("scales",),
        scheme="bytes",
        scale="int8",
        halves=2,
    ),
    note="d * scale * (q - 32); 16 groups of 16; int8 scales",
)
Q8_K = Format(
    "Q8_K",
    15,
    256,
    (Field("d", "float32"), Field("qs", "int8", (256,)), Field("bsums", "int16", (16,))),
    affine=lambda d, qs, bsums: Affine(qs, d),
    note="d * q; bsums are the sums of 16, for dot products. ggml uses it for activations",
)
FORMATS = (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K)
