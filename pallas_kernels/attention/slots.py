"""The loop over cache slots that decode and prefill share: softmax online, a block of slots at a time (Dao et al., 2022).

Rows are queries of one KV head. Blocks that every row sees whole are neither masked nor, in the cache's length, bounded: masks keep a GPU
from reading 16 bytes at once. Only the blocks at the ends of what is seen are masked.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.scoring import LOWEST, Scoring


def padded(size: int) -> int:
    """A size of a tile that goes into `dot`: a power of two, at least 16."""
    return max(16, pl.next_power_of_2(size))


@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of KV head `head` of sequence `b`, in blocks of `block` slots. keys: ref [B, K, H, S]; values: ref [B, K, S, H]."""

    keys: object
    values: object
    b: object
    head: object
    block: int

    @property
    def length(self) -> int:
        return self.values.shape[2]

    @property
    def width(self) -> int:
        return self.values.shape[3]

    def read(self, i, bounded: bool):
        """Block i: its slots [block], keys [P, block] and values [block, P], P the padded head width. bounded: may pass the last slot."""
        slots = i * self.block + jnp.arange(self.block, dtype=jnp.int32)
        columns = jnp.arange(padded(self.width), dtype=jnp.int32)
        bounded = bounded and self.length % self.block != 0
        limits = lambda c, s: within((c, self.width if self.width < columns.size else None), (s, self.length if bounded else None))
        c, s = columns[:, None], slots[None]
        keys = triton.load(self.keys, (self.b, self.head, c, s), mask=limits(c, s))
        c, s = columns[None], slots[:, None]
        return slots, keys, triton.load(self.values, (self.b, self.head, s, c), mask=limits(c, s))


def within(*limits):
    """A mask of the indices that lie below their limits, from (indices, limit or None) that broadcast; None if there is no limit."""
    shape = jnp.broadcast_shapes(*(indices.shape for indices, _ in limits))
    masks = [jnp.broadcast_to(indices < limit, shape) for indices, limit in limits if limit is not None]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def seen_blocks(slots: Slots, first, last, window: int | None):
    """Which blocks rows at positions `first` to `last` see: (begin, whole, masked, end), int32 scalars in ascending order.

    Blocks from `begin` to `end` are seen by some row; those from `whole` to `masked` by every row and whole.
    """
    clip = lambda slot: jnp.clip(slot, 0, slots.length)
    zero = jnp.int32(0)
    begin = zero if window is None else clip(first + 1 - window) // slots.block
    whole = zero if window is None else pl.cdiv(clip(last + 1 - window), slots.block)
    end = jnp.maximum(begin, pl.cdiv(clip(last + 1), slots.block))
    whole = jnp.minimum(whole, end)
    return begin, whole, jnp.clip(clip(first + 1) // slots.block, whole, end), end


def attend(q, slots: Slots, blocks, positions, last, scoring: Scoring):
    """Online softmax of rows over blocks of slots -> float32 (largest exponent [R], sum of weights [R], weighted values [R, P]).

    q: [R, P] in the cache's dtype. blocks: of `seen_blocks`. positions: int32, scalar or [R, 1]; last: the highest of them.
    A row that sees nothing has the sum 0.
    """
    precision = "highest" if q.dtype == jnp.float32 else None

    def step(i, state, masked):
        highest, total, sums = state
        at, keys, values = slots.read(i, bounded=masked)
        exponents = scoring.exponents(triton.dot(q, keys, precision=precision))
        if masked:
            exponents = jnp.where(scoring.sees(positions, at[None]), exponents, -jnp.inf)
            # A weight of 0 does not hide what a slot holds that was never filled: 0 * NaN is NaN.
            values = jnp.where((at <= last)[:, None], values, jnp.zeros_like(values))
        higher = jnp.maximum(highest, exponents.max(axis=1))
        weights, fade = jnp.exp2(exponents - higher[:, None]), jnp.exp2(highest - higher)
        added = triton.dot(weights.astype(values.dtype), values, precision=precision)
        return higher, total * fade + weights.sum(axis=1), sums * fade[:, None] + added

    rows = q.shape[0]
    state = jnp.full((rows,), LOWEST), jnp.zeros((rows,), jnp.float32), jnp.zeros(q.shape, jnp.float32)
    begin, whole, masked, end = blocks
    below = whole - begin
    edge = lambda j: jnp.where(j < below, begin + j, masked + j - below)
    state = jax.lax.fori_loop(jnp.int32(0), below + end - masked, lambda j, state: step(edge(j), state, True), state)
    return jax.lax.fori_loop(whole, masked, lambda i, state: step(i, state, False), state)


def normalised(sums, total):
    """Weighted sums [..., P] over the sum of weights [..., 1]; zeros where that is zero: nothing was seen."""
    return sums / jnp.where(total > 0, total, 1)
