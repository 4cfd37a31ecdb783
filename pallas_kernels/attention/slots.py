"""The loop over cache slots that decode and prefill share.

It computes an online softmax over blocks of slots (Dao et al., 2022). Rows are queries of one KV
head. Only the blocks at both ends of the visible slots are masked, because masks prevent loads of
16 bytes at once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.rule import LOWEST, AttentionRule
from pallas_kernels.targets import Target


def padded(size: int) -> int:
    """Round a size up to one that `dot` accepts: a power of two, at least 16."""
    return max(16, pl.next_power_of_2(size))


class Part(NamedTuple):
    """Some elements of a head, at indices `columns`, int32 [P]; only the first `count` exist."""

    columns: jax.Array
    count: int

    def limit(self, axis: int) -> tuple:
        """Return the limit of existing elements along one of two axes, for `within`."""
        index = jnp.arange(self.columns.size, dtype=jnp.int32)
        return jnp.expand_dims(index, 1 - axis), self.count if self.count < index.size else None


def whole(width: int) -> list[Part]:
    """Return a head as one part."""
    return [Part(jnp.arange(padded(width), dtype=jnp.int32), width)]


@dataclasses.dataclass(frozen=True)
class Slots:
    """Keys and values of KV head `head` of sequence `b`, in blocks of `block` slots.

    Attributes:
        keys: ref [B, K, H, S].
        values: ref [B, K, S, H].
        b: the index of the sequence.
        head: the index of the KV head.
        block: slots per block.
        parts: the parts of a head. Each part of the keys is loaded separately, and queries are
            split into the same parts.
        ring: whether the slots are a ring buffer: position p is in slot p % S. Block i then has the
            positions from i * block, and `block` divides S.
        limit: the number of filled slots, an int32 scalar; None if no row sees unfilled slots.
    """

    keys: object
    values: object
    b: object
    head: object
    block: int
    parts: list[Part]
    ring: bool = False
    limit: Any = None

    @property
    def length(self) -> int:
        """S, the slots of the cache."""
        return self.values.shape[2]

    @property
    def width(self) -> int:
        """H, the width of a head."""
        return self.values.shape[3]

    def read(self, i, bounded: bool):
        """Load block i.

        Args:
            i: the index of the block.
            bounded: whether the block may extend beyond the last slot.

        Returns:
            The positions [block], the keys [P, block] of each part and the values [block, P]; P are
            padded widths.
        """
        positions = slots = i * self.block + jnp.arange(self.block, dtype=jnp.int32)
        if self.ring:
            of_ring = jax.lax.rem(i, jnp.int32(self.length // self.block))
            slots = positions + (of_ring - i) * self.block
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
            positions,
            keys,
            triton.load(
                self.values,
                (self.b, self.head, slots[:, None], head.columns[None]),
                mask=values_mask,
            ),
        )


def within(*limits):
    """Make a mask of the indices below their limits, or return None if there is no limit.

    limits: pairs (indices, limit or None); the indices broadcast.
    """
    shape = jnp.broadcast_shapes(*(indices.shape for indices, _ in limits))
    masks = [
        jnp.broadcast_to(indices < limit, shape) for indices, limit in limits if limit is not None
    ]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def seen_blocks(slots: Slots, first, last, window: int | None):
    """Find the blocks that rows at positions `first` to `last` see.

    Returns:
        (begin, whole, masked, end), int32 scalars in ascending order. Some row sees a slot of each
        block from `begin` to `end`. Every row sees all slots of the blocks from `whole` to
        `masked`.
    """

    def clip(slot):
        end = slots.length if slots.limit is None else slots.limit
        return jnp.maximum(slot, 0) if slots.ring else jnp.clip(slot, 0, end)

    zero = jnp.int32(0)
    begin = zero if window is None else clip(first + 1 - window) // slots.block
    whole = zero if window is None else pl.cdiv(clip(last + 1 - window), slots.block)
    end = jnp.maximum(begin, pl.cdiv(clip(last + 1), slots.block))
    whole = jnp.minimum(whole, end)
    return begin, whole, jnp.clip(clip(first + 1) // slots.block, whole, end), end


def nothing_seen(rows: int, width: int):
    """Make the state of `attend` before any slot is seen."""
    return (
        jnp.full((rows,), LOWEST),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, padded(width)), jnp.float32),
    )


def attend(q, slots: Slots, blocks, positions, last, rule: AttentionRule, state, target: Target):
    """Compute an online softmax of rows over blocks of slots.

    Args:
        q: the queries, for each part of a head [R, P] in the cache's dtype.
        slots: the slots.
        blocks: the result of `seen_blocks`.
        positions: the last slot that each row sees, int32, a scalar or [R, 1].
        last: the highest of the positions.
        rule: which slots a row sees, and their weights.
        state: the state after earlier slots, or `nothing_seen`.
        target: the compilation target.

    Returns:
        The new state, float32: the largest exponents [R], the sums of weights [R] and the weighted
        values [R, P]. A row that has seen nothing has the sum 0.
    """
    precision = "highest" if q[0].dtype == jnp.float32 else None

    def step(i, state, masked):
        highest, total, sums = state
        at, keys, values = slots.read(i, bounded=masked)
        products = sum(triton.dot(*pair, precision=precision) for pair in zip(q, keys))
        scores, factor = rule.scores(products)
        if masked:
            seen, filled = rule.sees(positions, at[None]), at <= last
            if slots.limit is not None:
                filled &= at < slots.limit
                seen &= filled[None]
            scores = jnp.where(seen, scores, -jnp.inf)
            # A weight of 0 does not hide NaN in a slot that was never filled: 0 * NaN is NaN.
            values = jnp.where(filled[:, None], values, jnp.zeros_like(values))
        higher = jnp.maximum(highest, scores.max(axis=1) * factor)
        weights = jnp.exp2(triton.multiply_add(scores, factor, -higher[:, None], target))
        fade = jnp.exp2(highest - higher)
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
    """Divide weighted sums [..., P] by the sum of weights [..., 1]; zeros if that sum is zero."""
    return sums / jnp.where(total > 0, total, 1)
