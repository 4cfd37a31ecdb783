"""Helpers of the block formats: codes taken out of bytes, and the two casts at the end."""

from rocmforge_jax.formats._lazy import jnp


def unpack(packed, bits, run):
    """Takes the codes of `bits` bits out of words of `width` bits.

    Each run of `run` words holds width / bits runs of codes, those in the lowest bits first. So 16
    bytes with bits=4, run=16 give all low nibbles and then all high ones; run=1 takes the codes of
    each byte one after the other.

    Args:
        packed: unsigned [n].
        bits: bits of one code.
        run: words that are read together.

    Returns:
        The codes in the dtype of `packed`, [n * width / bits].
    """
    lead, shifts = packed.shape[:-1], _shifts(packed.dtype, bits)
    runs = packed.reshape(*lead, -1, 1, run)
    codes = (runs >> _column(shifts, runs.ndim)) & (2**bits - 1)
    return codes.reshape(*lead, -1)


def pack(codes, bits, run, dtype):
    """The inverse of `unpack`: codes [..., m] -> words of `dtype` [..., m * bits / width]."""
    dtype = np.dtype(dtype)
    runs = codes.reshape(*codes.shape[:-1], -1, 8 * dtype.itemsize // bits, run).astype(dtype)
    words = (runs << _column(_shifts(dtype, bits), runs.ndim)).sum(axis=-2, dtype=dtype)
    return words.reshape(*codes.shape[:-1], -1)


def _shifts(dtype, bits):
    """The shifts of the codes in a word."""
    return jnp.arange(0, 8 * np.dtype(dtype).itemsize, bits, dtype=dtype)


def _column(vector, ndim):
    """A vector along the last axis but one of `ndim` axes."""
    return vector.reshape(*[1] * (ndim - 2), -1, 1)


def i8(codes, minus=0):
    """Codes of at most 127 as int8, less an offset."""
    return codes.astype(jnp.int8) - jnp.int8(minus)


def f32(x):
    """The numbers as float32."""
    return x.astype(jnp.float32)
