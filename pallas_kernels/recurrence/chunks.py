"""Helpers of kernels that compute a recurrence in chunks of tokens."""

import jax.numpy as jnp

from pallas_kernels import triton


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


def decays(log_decay_C):
    """Returns the decays between two tokens of a chunk, since its beginning and until its end.

    Element [c, d] of the first is the decay from token d to token c, 0 if d is later than c. Each
    logarithm is a sum of its own: a difference of two sums would lose digits after strong decays.
    """
    row, column = rows_and_columns(log_decay_C.size)
    is_lower, log_decay_CC = row >= column, jnp.broadcast_to(log_decay_C[None], row.shape)
    after_CC = jnp.where(row > column, log_decay_C[:, None], 0)
    between_CC = jnp.exp(jnp.cumsum(after_CC, axis=0))
    since = jnp.exp(jnp.where(is_lower, log_decay_CC, 0).sum(axis=1))
    until = jnp.exp(jnp.where(row < column, log_decay_CC, 0).sum(axis=1))
    return jnp.where(is_lower, between_CC, 0), since, until


def rows_and_columns(C: int):
    """Returns the index of the row and of the column of each element of a C x C matrix."""
    index = jnp.arange(C, dtype=jnp.int32)
    shape = C, C
    return jnp.broadcast_to(index[:, None], shape), jnp.broadcast_to(index[None], shape)
