"""The K-quants: super-blocks of 256 elements whose groups of 16 or 32 have small integer scales
under one or two f16.

Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_*_K, get_scale_min_k4).
"""

from rocmforge_jax.formats._bits import f32, i8, unpack
from rocmforge_jax.formats._lazy import jnp
from rocmforge_jax.formats.format import Affine, Field, Format, u8


def _q2_k(scales, qs, d, dmin):
    return Affine(i8(unpack(qs, 2, 32)), f32(d) * f32(scales & 15), -f32(dmin) * f32(scales >> 4))


def _q3_k(hmask, qs, scales, d):
    high = unpack(hmask, 1, 32)
    group_scales = unpack(scales[:8], 4, 8) | (unpack(scales[8:], 2, 4) << 4)
    return Affine(i8(unpack(qs, 2, 32) | (high << 2), 4), f32(d) * f32(i8(group_scales, 32)))


def _scale_min(scales):
    """uint8 [12] -> scales, mins: uint8 [8] each, 0 to 63.

    Groups 4-7 keep their upper two bits above those of groups 0-3.
    """
    low_scales, low_mins, rest = scales[:4], scales[4:8], scales[8:]
    high_scales = (rest & 15) | ((low_scales >> 6) << 4)
    high_mins = (rest >> 4) | ((low_mins >> 6) << 4)
    return jnp.concatenate([low_scales & 63, high_scales]), jnp.concatenate(
        [low_mins & 63, high_mins]
    )


def _scales_and_mins(codes, d, dmin, scales):
    group_scales, group_mins = _scale_min(scales)
    return Affine(i8(codes), f32(d) * f32(group_scales), -f32(dmin) * f32(group_mins))


def _q4_k(d, dmin, scales, qs):
    return _scales_and_mins(unpack(qs, 4, 32), d, dmin, scales)


def _q5_k(d, dmin, scales, qh, qs):
    return _scales_and_mins(unpack(qs, 4, 32) | (unpack(qh, 1, 32) << 4), d, dmin, scales)


def _q6_k(ql, qh, scales, d):
    return Affine(i8(unpack(ql, 4, 64) | (unpack(qh, 2, 32) << 4), 32), f32(d) * f32(scales))


_D, _DMIN = Field("d", "float16"), Field("dmin", "float16")

Q2_K = Format(
    "Q2_K",
    10,
    256,
    (u8("scales", 16), u8("qs", 64), _D, _DMIN),
    affine=_q2_k,
    note="d * scale * q - dmin * min; 16 groups of 16; scale and min are nibbles of one byte",
)
Q3_K = Format(
    "Q3_K",
    11,
    256,
    (u8("hmask", 32), u8("qs", 64), u8("scales", 12), _D),
    affine=_q3_k,
    note="d * (scale - 32) * (q - 4); 16 groups of 16; 6-bit scales; hmask holds the third bits",
)
Q4_K = Format(
    "Q4_K",
    12,
    256,
    (_D, _DMIN, u8("scales", 12), u8("qs", 128)),
    affine=_q4_k,
    note="d * scale * q - dmin * min; 8 groups of 32; 6-bit scales and mins",
)
Q5_K = Format(
    "Q5_K",
    13,
    256,
    (_D, _DMIN, u8("scales", 12), u8("qh", 32), u8("qs", 128)),
    affine=_q5_k,
    note="as Q4_K, with a fifth bit in qh",
)
Q6_K = Format(
    "Q6_K",
    14,
    256,
    (u8("ql", 128), u8("qh", 64), Field("scales", "int8", (16,)), _D),
    affine=_q6_k,
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
