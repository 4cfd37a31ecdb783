"""The formats with one bit, two bits or three values per element.

Sources: ggml-common.h (structs), ggml-quants.c (dequantize_row_*).
"""

from rocmforge_jax.formats._bits import f32, i8, unpack
from rocmforge_jax.formats._lazy import jnp
from rocmforge_jax.formats.format import Affine, Field, Format, u8
from rocmforge_jax.formats.packing import Codes, WordPacking

_D = Field("d", "float16")


def _trits(packed, run, digits):
    """Unpacks base-3 digits: uint8 [n] -> uint8 [n * digits], 0 to 2.

    Each run of `run` bytes stores `digits` runs of digits. A byte is ceil(256 / 243 * number), a
    fixed-point fraction. Multiplying the fraction by 3 repeatedly yields the digits as whole parts.
    """
    powers = jnp.array([1, 3, 9, 27, 81][:digits], jnp.uint8)
    fractions = packed.reshape(-1, 1, run) * powers.reshape(1, -1, 1)
    return ((fractions.astype(jnp.uint16) * 3) >> 8).astype(jnp.uint8).reshape(-1)


def _tq1_0(qs, qh, d):
    codes = jnp.concatenate([_trits(qs[:32], 32, 5), _trits(qs[32:], 16, 5), _trits(qh, 4, 4)])
    return Affine(i8(codes, 1), f32(d))


TQ1_0 = Format(
    "TQ1_0",
    34,
    256,
    (u8("qs", 48), u8("qh", 4), _D),
    affine=_tq1_0,
    note="d * (q - 1), q of 0 to 2; five to a byte, the last 16 elements four to a byte",
)
TQ2_0 = Format(
    "TQ2_0",
    35,
    256,
    (u8("qs", 64), _D),
    affine=lambda qs, d: Affine(i8(unpack(qs, 2, 32), 1), f32(d)),
    packing=WordPacking((Codes("qs", bits=2, run=32),), offset=1),
    note="d * (q - 1), q of 0 to 2 (3 is read as 2 * d)",
)
Q1_0 = Format(
    "Q1_0",
    41,
    128,
    (_D, u8("qs", 16)),
    affine=lambda d, qs: Affine(i8(2 * unpack(qs, 1, 1), 1), f32(d)),
    note="d where the bit is set, else -d",
)
Q2_0 = Format(
    "Q2_0",
    42,
    64,
    (_D, u8("qs", 16)),
    affine=lambda d, qs: Affine(i8(unpack(qs, 2, 1), 1), f32(d)),
    packing=WordPacking((Codes("qs", bits=2, run=1),), offset=1),
    note="d * (q - 1), q of 0 to 3; element i is bits 2(i mod 4) of byte i / 4",
)
FORMATS = (TQ1_0, TQ2_0, Q1_0, Q2_0)
