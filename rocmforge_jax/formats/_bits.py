"""Packing and unpacking of small codes, and the casts that end most declarations."""

import numpy as np

from rocmforge_jax.formats._lazy import jnp


def unpack(packed, bits, run):
    """Unpacks the codes of `bits` bits that unsigned words hold, in the words' dtype.

    Each run of `run` words holds width / bits runs of codes, those in the lowest bits first. So 16
    bytes with bits=4, run=16 give all low nibbles and then all high ones; run=1 takes the codes of
    each byte one after the other.

    Args:
        packed: unsigned [..., n], words of `width` bits.
        bits: bits of a code; divides the width.
        run: words of a run; divides n.

    Returns:
        The codes, [..., n * width / bits].
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
