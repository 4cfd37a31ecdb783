"""What the block formats share: codes taken out of bytes, and the two casts that every declaration
ends with.
"""

from rocmforge_jax.formats._lazy import jnp


def unpack(packed, bits, run):
    """Unsigned [n] -> the same dtype [n * width / bits]: the codes of `bits` bits in n words of
    `width` bits.

    Each run of `run` words holds width / bits runs of codes, those in the lowest bits first. So 16
    bytes with bits=4, run=16 give all low nibbles and then all high ones; run=1 takes the codes of
    each byte one after the other.
    """
    shifts = jnp.arange(0, 8 * packed.dtype.itemsize, bits, dtype=packed.dtype)
    codes = (packed.reshape(-1, 1, run) >> shifts.reshape(1, -1, 1)) & (2**bits - 1)
    return codes.reshape(-1)


def i8(codes, minus=0):
    """Codes of at most 127 as int8, less an offset."""
    return codes.astype(jnp.int8) - jnp.int8(minus)


def f32(x):
    return x.astype(jnp.float32)
