"""Packs and unpacks small codes, and casts values for the declarations."""

import numpy as np

from rocmforge_jax.formats._lazy import jnp


def unpack(packed, bits, run):
    """Unpacks codes of `bits` bits from unsigned words, in the words' dtype.

    Each run of `run` words holds width / bits runs of codes, starting with the lowest bits. For
    example, bits=4 and run=16 unpack 16 bytes to all low nibbles followed by all high nibbles. With
    run=1, the codes of each byte are consecutive.

    Args:
        packed: unsigned [..., n], words of `width` bits.
        bits: The number of bits of a code; divides the width.
        run: The number of words of a run; divides n.

    Returns:
        The codes, [..., n * width / bits].
    """
    lead, shifts = packed.shape[:-1], _shifts(packed.dtype, bits)
    runs = packed.reshape(*lead, -1, 1, run)
    codes = (runs >> _column(shifts, runs.ndim)) & (2**bits - 1)
    return codes.reshape(*lead, -1)


def pack(codes, bits, run, dtype):
    """Inverts `unpack`: codes [..., m] -> words of `dtype` [..., m * bits / width]."""
    dtype = np.dtype(dtype)
    runs = codes.reshape(*codes.shape[:-1], -1, 8 * dtype.itemsize // bits, run).astype(dtype)
    words = (runs << _column(_shifts(dtype, bits), runs.ndim)).sum(axis=-2, dtype=dtype)
    return words.reshape(*codes.shape[:-1], -1)


def _shifts(dtype, bits):
    """Returns the shift of each code in a word."""
    return jnp.arange(0, 8 * np.dtype(dtype).itemsize, bits, dtype=dtype)


def _column(vector, ndim):
    """Reshapes a vector to `ndim` axes, with its elements along the second-to-last axis."""
    return vector.reshape(*[1] * (ndim - 2), -1, 1)


def i8(codes, minus=0):
    """Converts codes of at most 127 to int8 and subtracts an offset."""
    return codes.astype(jnp.int8) - jnp.int8(minus)


def f32(x):
    """Converts numbers to float32."""
    return x.astype(jnp.float32)
