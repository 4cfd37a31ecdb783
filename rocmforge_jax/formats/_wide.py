"""Converts 64-bit numbers to float32 with 32-bit operations, because JAX without x64 has no others.

All arithmetic is on integers, and the result is rounded once. Both functions accept uint32 [...,
2], low word first. Like a cast, they round to the nearest float32, ties to even.
"""

import numpy as np

from rocmforge_jax.formats._lazy import jax, jnp

SIGN, INFINITE, QUIET_NAN = np.uint32(0x80000000), np.uint32(0x7F800000), np.uint32(0x7FC00000)


def float32_of_float64(words):
    """Converts float64 to float32.

    Overflow becomes infinity, underflow a subnormal or zero, and NaN the quiet NaN.
    """
    low, high = words[..., 0], words[..., 1]
    exponent = ((high >> 20) & 0x7FF).astype(jnp.int32)
    # 24 significant bits, then a rounding bit, then a sticky bit for all lower bits.
    significand = 0x2000000 | ((high & 0xFFFFF) << 5) | (low >> 27) | _any(low & 0x7FFFFFF)
    bits = _round(significand, exponent - 1023 + 127)
    is_nan = (exponent == 0x7FF) & (((high & 0xFFFFF) | low) != 0)
    bits = jnp.where(is_nan, QUIET_NAN, bits)
    return jax.lax.bitcast_convert_type(bits | (high & SIGN), jnp.float32)


def float32_of_int64(words):
    """Converts int64 in two's complement to float32."""
    low, high = words[..., 0], words[..., 1]
    negative = (high >> 31) > 0
    high = jnp.where(negative, jnp.where(low == 0, 0 - high, ~high), high)
    low = jnp.where(negative, 0 - low, low)
    # `top` has the leading one in its highest bit; `rest` has the bits of the number below `top`.
    fits = high == 0
    leading = jnp.where(fits, low, high)
    shift = jnp.minimum(jax.lax.clz(leading), 31)
    top = (leading << shift) | jnp.where(fits, 0, (low >> 1) >> (31 - shift))
    rest = jnp.where(fits, 0, low << shift)
    exponent = jnp.where(fits, 31, 63) - shift.astype(jnp.int32)
    bits = jnp.where(leading == 0, 0, _round((top >> 6) | _any((top & 63) | rest), exponent + 127))
    return jax.lax.bitcast_convert_type(bits | jnp.where(negative, SIGN, 0), jnp.float32)


def _any(bits):
    """Returns 1 where any bit is set, else 0."""
    return (bits != 0).astype(jnp.uint32)


def _round(significand, biased):
    """Rounds and assembles the bits of a positive float32.

    Args:
        significand: uint32 with 26 bits. Bit 25 is the leading one; the lowest two bits are rounded
            away.
        biased: The biased exponent, int32.
    """
    shift = jnp.clip(1 - biased, 0, 26).astype(jnp.uint32)
    lost = significand & ((jnp.uint32(1) << shift) - 1)
    significand = (significand >> shift) | _any(lost)
    whole, rest = significand >> 2, significand & 3
    rounded = whole + (rest + (whole & 1) > 2).astype(jnp.uint32)
    # The addition carries the leading one into the exponent, which is therefore one less.
    bits = (jnp.clip(biased - 1, 0, 254).astype(jnp.uint32) << 23) + rounded
    return jnp.where(biased > 254, INFINITE, bits)
