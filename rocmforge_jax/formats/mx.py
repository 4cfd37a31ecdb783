"""Small floats with a shared power of two (MX) or a shared small float (NVFP4).

XLA may flush values that are subnormal in float32, and for the two lowest exponents the scale
itself is subnormal. So `decode` builds values with integer operations. `affine` is for matrix
products, where a flushed 2^-127 does not matter.

`pallas_kernels.packing` has its own decoders of E8M0 and E4M3 for kernels, because neither package
imports the other. A test compares them for every code and every scale.

Sources: OCP Microscaling Formats (MX) v1.0; ggml-impl.h (ggml_e8m0_to_fp32_half,
ggml_ue4m3_to_fp32).
"""

import numpy as np

from rocmforge_jax.formats._bits import f32, unpack
from rocmforge_jax.formats._lazy import jax, jnp
from rocmforge_jax.formats.format import Affine, Format, u8
from rocmforge_jax.formats.packing import Codes, WordPacking

E8M0_BIAS = 127


def multiples(mantissa_bits, codes):
    """Returns the magnitudes of a small float as multiples of its smallest one.

    Args:
        mantissa_bits: The number of mantissa bits.
        codes: The number of codes, from 0 on.

    Returns:
        A NumPy array, float32 [codes].
    """
    one = 2**mantissa_bits
    return np.array(
        [c if c < one else (c % one + one) << (c // one - 1) for c in range(codes)], np.float32
    )


def _magnitude(code, mantissa_bits):
    """Converts codes without sign to int32 multiples of the format's smallest value."""
    code = code.astype(jnp.int32)
    exponent, mantissa = code >> mantissa_bits, code & (2**mantissa_bits - 1)
    return jnp.where(
        exponent > 0, (mantissa | 2**mantissa_bits) << jnp.maximum(exponent - 1, 0), mantissa
    )


def _power_of_two(exponent):
    """Returns 2^exponent as float32 for int32 exponents from -149 to 127, including subnormals."""
    biased = exponent + 127
    bits = jnp.where(biased > 0, biased << 23, 1 << jnp.clip(exponent + 149, 0, 22))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _times_power_of_two(x, exponent):
    """Returns x * 2^exponent, computed with integer operations; infinite on overflow.

    Args:
        x: Zeros or normal float32 numbers. They have no bits below the result's lowest bit.
        exponent: int32.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    magnitude, fraction = bits & 0x7FFFFFFF, bits & 0x7FFFFF
    biased = (magnitude >> 23) + exponent
    normal = jnp.where(biased < 255, (biased << 23) | fraction, 0x7F800000)
    subnormal = (fraction | 0x800000) >> jnp.clip(1 - biased, 0, 24)
    scaled = jnp.where(magnitude == 0, 0, jnp.where(biased > 0, normal, subnormal))
    return jax.lax.bitcast_convert_type(scaled | (bits ^ magnitude), jnp.float32)


def _doubled_e2m1(qs, run):
    """Converts nibbles to int8 with twice the value: 0 1 2 3 4 6 8 12 and their negatives.

    Code 8 is plain zero, as in ggml.
    """
    codes = unpack(qs, 4, run)
    magnitude = _magnitude(codes & 7, 1).astype(jnp.int8)
    return jnp.where(codes > 7, -magnitude, magnitude)


def _mxfp4(e, qs):
    return Affine(_doubled_e2m1(qs, 16), _power_of_two(e.astype(jnp.int32) - E8M0_BIAS - 1))


def _mxfp4_values(e, qs):
    return _times_power_of_two(f32(_doubled_e2m1(qs, 16)), e.astype(jnp.int32) - E8M0_BIAS - 1)


def _nvfp4(d, qs):
    """Reads d as unsigned E4M3, with its NaN, 0x7F, as zero.

    The scale is halved because the codes are doubled.
    """
    scale = f32(_magnitude(d & 127, 3)) * 2**-10
    return Affine(_doubled_e2m1(qs, 8), jnp.where(d == 0x7F, 0, scale))


def pack6(codes) -> np.ndarray:
    """Packs 6-bit codes in NumPy: uint8 [..., 4n], 0 to 63 -> uint8 [..., 3n].

    Element i occupies bits 6i to 6i + 5 of the little-endian number.

    Raises:
        ValueError: A code is above 63, the dtype is not uint8, or the length is not a multiple of
            4.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim < 1 or codes.shape[-1] % 4:
        raise ValueError(
            f"6-bit codes are uint8 [..., a multiple of 4], got {codes.dtype} {list(codes.shape)}"
        )
    if codes.max(initial=0) > 63:
        raise ValueError(f"6-bit codes are at most 63, got {codes.max()}")
    a, b, c, d = np.moveaxis(codes.reshape(*codes.shape[:-1], -1, 4), -1, 0)
    three = np.stack([a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)], axis=-1)
    return three.reshape(*codes.shape[:-1], -1)


def unpack6(qs):
    """Inverts `pack6` on the device: uint8 [3n] -> uint8 [4n]."""
    three = qs.reshape(-1, 3).astype(jnp.uint32)
    words = three[:, 0] | (three[:, 1] << 8) | (three[:, 2] << 16)
    codes = (words[:, None] >> jnp.array([[0, 6, 12, 18]], jnp.uint32)) & 63
    return codes.astype(jnp.uint8).reshape(-1)


def _mxfp6_values(mantissa_bits, smallest):
    """Returns the decode function of an MXFP6 format with the smallest magnitude 2^smallest.

    It keeps -0, and e = 255 becomes NaN.
    """

    def decode(qs, e):
        codes = unpack6(qs)
        magnitude = f32(_magnitude(codes & 31, mantissa_bits))
        values = jnp.where(codes > 31, -magnitude, magnitude)
        scaled = _times_power_of_two(values, e.astype(jnp.int32) - E8M0_BIAS + smallest)
        return jnp.where(e == 255, jnp.nan, scaled)

    return decode


def _mxfp6_e2m3(qs, e):
    codes = unpack6(qs)
    magnitude = _magnitude(codes & 31, 3).astype(jnp.int8)
    scale = _power_of_two(jnp.minimum(e, 254).astype(jnp.int32) - E8M0_BIAS - 3)
    return Affine(jnp.where(codes > 31, -magnitude, magnitude), jnp.where(e == 255, jnp.nan, scale))


#: Twice the values of E2M1, indexed by code, plus an offset that makes them non-negative. So
#: kernels can look them up without exchanging bits.
_E2M1_OFFSET = 12
_E2M1 = tuple(
    _E2M1_OFFSET + sign * int(magnitude) for sign in (1, -1) for magnitude in multiples(1, 8)
)
_E, _QS6 = u8("e"), u8("qs", 24)

MXFP4 = Format(
    "MXFP4",
    39,
    32,
    (_E, u8("qs", 16)),
    affine=_mxfp4,
    decode=_mxfp4_values,
    packing=WordPacking(
        (Codes("qs", bits=4, run=16),),
        offset=_E2M1_OFFSET,
        table=_E2M1,
        d=None,
        scales=("e",),
        scheme="bytes",
        scale="e8m0",
    ),
    note="2^(e - 127) * E2M1; OCP differs: there e = 255 is NaN and code 8 is -0",
)
NVFP4 = Format(
    "NVFP4",
    40,
    64,
    (u8("d", 4), u8("qs", 32)),
    affine=_nvfp4,
    packing=WordPacking(
        (Codes("qs", bits=4, run=8),),
        offset=_E2M1_OFFSET,
        table=_E2M1,
        d=None,
        scales=("d",),
        scheme="bytes",
        scale="e4m3",
        halves=2,
    ),
    note=(
        "d * E2M1; 4 groups of 16; d is an unsigned E4M3. A tensor-wide f32 scale, if any, is a"
        " tensor of its own"
    ),
)
MXFP6_E2M3 = Format(
    "MXFP6_E2M3",
    None,
    32,
    (_QS6, _E),
    affine=_mxfp6_e2m3,
    decode=_mxfp6_values(3, smallest=-3),
    note="2^(e - 127) * E2M3; element i is bits 6i to 6i + 5 of qs; e = 255 is NaN",
)
MXFP6_E3M2 = Format(
    "MXFP6_E3M2",
    None,
    32,
    (_QS6, _E),
    decode=_mxfp6_values(2, smallest=-4),
    note="2^(e - 127) * E3M2; element i is bits 6i to 6i + 5 of qs; e = 255 is NaN",
)
FORMATS = (MXFP4, NVFP4, MXFP6_E2M3, MXFP6_E3M2)
