"""The loop over cache slots that decode and prefill share: softmax online, a block of slots at a
time (Dao et al., 2022).

Rows are queries of one KV head. Blocks that every row sees whole are neither masked nor, in the
cache's length, bounded: masks keep a GPU from reading 16 bytes at once. Only the blocks at the ends
of what is seen are masked.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.rule import LOWEST, Scoring


def padded(size: int) -> int:
    """A size of a tile that goes into `dot`: a power of two, at least 16."""
    return max(16, pl.next_power_of_2(size))


class Part(NamedTuple):
    """Some elements of a head: those at `columns`, int32 [P], of which the first `count` exist."""

    columns: jax.Array
    count: int

    def limit(self, axis: int) -> tuple:
        """For `within`: what exists, along an axis of two."""
        index = jnp.arange(self.columns.size, dtype=jnp.int32)
        return jnp.expand_dims(index, 1 - axis), self.count if self.count < index.size else None


def whole(width: int) -> list[Part]:
    """A head as it lies."""
    return [Part(jnp.arange(padded(width), dtype=jnp.int32), width)]


@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of KV head `head` of sequence `b`, in blocks of `block` slots.

    keys: ref [B, K, H, S]; values: ref [B, K, S, H].

    parts: in which keys are read, with queries to match.
    """

    keys: object
    values: object
    b: object
    head: object
    block: int
    parts: list[Part]

    @property
    def length(self) -> int:
        return self.values.shape[2]

    @property
    def width(self) -> int:
        return self.values.shape[3]

    def read(self, i, bounded: bool):
        """Block i: its slots [block], keys [P, block] of each part and values [block, P], P padded
        widths. bounded: may pass the last slot.
        """
        slots = i * self.block + jnp.arange(self.block, dtype=jnp.int32)
        end = self.length if bounded and self.length % self.block else None
        keys = [
            triton.load(
                self.keys,
                (self.b, self.head, part.columns[:, None], slots[None]),
                mask=within(part.limit(0), (slots[None], end)),
            )
            for part in self.parts
        ]
        (head,) = whole(self.width)
        values_mask = within(head.limit(1), (slots[:, None], end))
        return (
            slots,
            keys,
            triton.load(
                self.values,
                (self.b, self.head, slots[:, None], head.columns[None]),
                mask=values_mask,
            ),
        )


def within(*limits):
    """A mask of the indices that lie below their limits, from (indices, limit or None) that
    broadcast; None if there is no limit.
    """
    shape = jnp.broadcast_shapes(*(indices.shape for indices, _ in limits))
    masks = [
        jnp.broadcast_to(indices < limit, shape) for indices, limit in limits if limit is not None
    ]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def seen_blocks(slots: Slots, first, last, window: int | None):
    """Which blocks rows at positions `first` to `last` see: (begin, whole, masked, end), int32
    scalars in ascending order.

    Blocks from `begin` to `end` are seen by some row; those from `whole` to `masked` by every row
    and whole.
    """

    def clip(slot):
        return jnp.clip(slot, 0, slots.length)

    zero = jnp.int32(0)
    begin = zero if window is None else clip(first + 1 - window) // slots.block
    whole = zero if window is None else pl.cdiv(clip(last + 1 - window), slots.block)
    end = jnp.maximum(begin, pl.cdiv(clip(last + 1), slots.block))
    whole = jnp.minimum(whole, end)
    return begin, whole, jnp.clip(clip(first + 1) // slots.block, whole, end), end


def nothing_seen(rows: int, width: int):
    """The state of `attend` before any slot."""
    return (
        jnp.full((rows,), LOWEST),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, padded(width)), jnp.float32),
    )


def attend(q, slots: Slots, blocks, positions, last, scoring: Scoring, state):
    """Online softmax of rows over blocks of slots -> float32 (largest exponent [R], sum of weights
    [R], weighted values [R, P]).

    q: [R, P] in the cache's dtype for each part of the slots. blocks: of `seen_blocks`. positions:
    int32, scalar or [R, 1]; last: the highest of them. state: what was seen before. A row that sees
    nothing has the sum 0.
    """
    precision = "highest" if q[0].dtype == jnp.float32 else None

    def step(i, state, masked):
        highest, total, sums = state
        at, keys, values = slots.read(i, bounded=masked)
        exponents = scoring.exponents(
            sum(triton.dot(*pair, precision=precision) for pair in zip(q, keys))
        )
        if masked:
            exponents = jnp.where(scoring.sees(positions, at[None]), exponents, -jnp.inf)
            # A weight of 0 does not hide what a slot holds that was never filled: 0 * NaN is NaN.
            values = jnp.where((at <= last)[:, None], values, jnp.zeros_like(values))
        higher = jnp.maximum(highest, exponents.max(axis=1))
        weights, fade = jnp.exp2(exponents - higher[:, None]), jnp.exp2(highest - higher)
        added = triton.dot(weights.astype(values.dtype), values, precision=precision)
        return higher, total * fade + weights.sum(axis=1), sums * fade[:, None] + added

    begin, whole, masked, end = blocks
    below = whole - begin

    def edge(j):
        return jnp.where(j < below, begin + j, masked + j - below)

    state = jax.lax.fori_loop(
        jnp.int32(0), below + end - masked, lambda j, state: step(edge(j), state, True), state
    )
    return jax.lax.fori_loop(whole, masked, lambda i, state: step(i, state, False), state)


def normalised(sums, total):
    """Weighted sums [..., P] over the sum of weights [..., 1].

    Zeros where that is zero: nothing was seen.
    """
    return sums / jnp.where(total > 0, total, 1)
