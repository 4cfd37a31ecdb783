"""The 32-element block formats of ggml's first days. Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_*)."""

from rocmforge_jax.formats._lazy import jnp
from rocmforge_jax.formats.format import Affine, Field, Format


def nibbles(qs):
    """uint8 [n] -> uint8 [2n]: all low nibbles, then all high nibbles."""
    return jnp.concatenate([qs & 15, qs >> 4])


def _five_bits(qh, qs):
    """Bit i of qh is the fifth bit of element i. -> uint8 [32], 0 to 31."""
    fifth = (qh >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return nibbles(qs) | (fifth << 4).astype(jnp.uint8)


def _i8(codes, minus=0):
    return codes.astype(jnp.int8) - jnp.int8(minus)


def _f32(x):
    return x.astype(jnp.float32)


Q4_0 = Format(
    "Q4_0", 2, 32, (Field("d", "float16"), Field("qs", "uint8", (16,))),
    affine=lambda d, qs: Affine(_i8(nibbles(qs), 8), _f32(d)),
    note="d * (q - 8)",
)
Q4_1 = Format(
    "Q4_1", 3, 32, (Field("d", "float16"), Field("m", "float16"), Field("qs", "uint8", (16,))),
    affine=lambda d, m, qs: Affine(_i8(nibbles(qs)), _f32(d), _f32(m)),
    note="d * q + m",
)
Q5_0 = Format(
    "Q5_0", 6, 32, (Field("d", "float16"), Field("qh", "uint32"), Field("qs", "uint8", (16,))),
    affine=lambda d, qh, qs: Affine(_i8(_five_bits(qh, qs), 16), _f32(d)),
    note="d * (q - 16); bit i of qh is the fifth bit of element i",
)
Q5_1 = Format(
    "Q5_1", 7, 32, (Field("d", "float16"), Field("m", "float16"), Field("qh", "uint32"), Field("qs", "uint8", (16,))),
    affine=lambda d, m, qh, qs: Affine(_i8(_five_bits(qh, qs)), _f32(d), _f32(m)),
    note="d * q + m; bit i of qh is the fifth bit of element i",
)
Q8_0 = Format(
    "Q8_0", 8, 32, (Field("d", "float16"), Field("qs", "int8", (32,))),
    affine=lambda d, qs: Affine(qs, _f32(d)),
    note="d * q",
)
Q8_1 = Format(
    "Q8_1", 9, 32, (Field("d", "float16"), Field("s", "float16"), Field("qs", "int8", (32,))),
    affine=lambda d, s, qs: Affine(qs, _f32(d)),
    note="d * q; s = d * sum(q), for dot products. ggml uses it for activations",
)
FORMATS = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1)
