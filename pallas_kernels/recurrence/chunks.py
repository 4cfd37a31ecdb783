"""Helpers of kernels that compute a recurrence in chunks of tokens."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels import triton

#: The unit of sums of logarithms is 2^-UNIT_BITS. Sums of 128 logarithms down to -128 are exact.
UNIT_BITS = 10


def parts(width: int, most: int) -> list:
    """Divides indices into parts of at most `most`, which are multiplied one after the other."""
    count = min(width, most)
    return [first + jnp.arange(count, dtype=jnp.int32) for first in range(0, width, count)]


class Place:
    """Where a chunk of a head is: loads its tokens, and zeros in place of tokens after the last."""

    def __init__(self, b, n, tokens, T: int):
        self.b, self.n, self.tokens, self.is_real = b, n, tokens, tokens < T

    def rows(self, ref, part, mask=None):
        """Loads numbers `part` of ref [B, T, N, width], a row per token.

        mask: where numbers exist, None for everywhere. Others are zeros.
        """
        index = self.b, self.tokens[:, None], self.n, part[None]
        is_real = self.is_real[:, None]
        return triton.load(ref, index, mask=is_real if mask is None else is_real & mask[None])

    def columns(self, ref, part):
        """Loads the same as `rows`, transposed."""
        index = self.b, self.tokens[None], self.n, part[:, None]
        return triton.load(ref, index, mask=self.is_real[None])

    def numbers(self, ref):
        """Loads a number of ref [B, T, N] per token."""
        return triton.load(ref, (self.b, self.tokens, self.n), mask=self.is_real)


class Decays:
    """The decays within a chunk, given the logarithms of the decays of its tokens, at most 0.

    Decays between tokens are differences of sums from the beginning of the chunk. A difference of
    two float32 sums would lose digits after strong decays. So each logarithm is divided into a
    multiple of 2^-UNIT_BITS and a small remainder, which are summed apart. Sums of the multiples
    are exact, because they have at most 24 bits.
    """

    def __init__(self, log_decay_C):
        # A decay of e^-128 is 0 in float32.
        clamped = jnp.maximum(log_decay_C, np.float32(-128))
        unit = np.float32(2**UNIT_BITS)
        multiple = (clamped * unit).astype(jnp.int32).astype(jnp.float32) / unit
        self._parts = [(part.sum(), jnp.cumsum(part)) for part in (multiple, clamped - multiple)]

    def between(self):
        """Returns [C, C]: in row c and column d, the decay from token d to c; 0 if d is later."""
        row, column = rows_and_columns(self._parts[0][1].size)
        log_decay_CC = sum(sums[:, None] - sums[None] for _, sums in self._parts)
        return jnp.where(row >= column, jnp.exp(log_decay_CC), 0)

    def since(self):
        """Returns the decay from the beginning of the chunk to each token, itself included."""
        return jnp.exp(sum(sums for _, sums in self._parts))

    def until(self):
        """Returns the decay from each token, itself excluded, to the end of the chunk."""
        return jnp.exp(sum(total - sums for total, sums in self._parts))

    def whole(self):
        """Returns the decay of the whole chunk."""
        return jnp.exp(sum(total for total, _ in self._parts))


def rows_and_columns(C: int):
    """Returns the index of the row and of the column of each element of a C x C matrix."""
    index = jnp.arange(C, dtype=jnp.int32)
    shape = C, C
    return jnp.broadcast_to(index[:, None], shape), jnp.broadcast_to(index[None], shape)
