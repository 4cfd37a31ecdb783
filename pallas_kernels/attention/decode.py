"""Decode: one new token of each sequence attends to its cache.

Reading the cache once takes most of the time (Flash-Decoding, 2023). The query heads of a KV group
are rows of one tile, so that they share one read of the cache.

One sequence has few KV heads, but a GPU has many multiprocessors. So the filled slots are split
evenly over programs. Each program writes its largest exponent, its sum of weights and its weighted
values. A second kernel combines them, and can quantise the result for the next product.

The caller can pass the new token before it is rotated and written to the cache, which saves a
launch. The first split then attends to the new token and stores it. The other splits attend to
earlier tokens only, so that no program waits for another.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.blocks import Blocks
from pallas_kernels.attention.rule import LOG2_E, LOWEST, AttentionRule
from pallas_kernels.attention.slots import (
    Part,
    Slots,
    attend,
    normalised,
    nothing_seen,
    padded,
    seen_blocks,
    whole,
    within,
)
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul import activations
from pallas_kernels.targets import Target

#: Numbers in a tile of the second kernel (64 registers per thread), and threads per program.
_COMBINED_TILE, _COMBINED_THREADS = 8192, 128


class NewTokens(NamedTuple):
    """One token of each sequence that is not in the cache yet.

    Attributes:
        k_BKH: the keys.
        v_BKH: the values.
        cos_BR: float32, cosines of the angles by which R pairs of elements of queries and keys are
            rotated; None for no rotation. Elements from 2R on are not rotated.
        sin_BR: float32, sines of the same angles, or None.
        interleaved: whether pair i is the elements 2i and 2i + 1 of a head, and not i and R + i.
        norms: the two scales [H] and the two epsilons of RMSNorms of query heads and of key heads,
            which are applied before the rotation; or None.
    """

    k_BKH: jax.Array
    v_BKH: jax.Array
    cos_BR: jax.Array | None
    sin_BR: jax.Array | None
    interleaved: bool
    norms: tuple[tuple[jax.Array, jax.Array], tuple[float, float]] | None = None

    @property
    def arrays(self) -> list:
        """The arrays that are operands of the kernel."""
        angles = [self.cos_BR, self.sin_BR] if self.rotates else []
        return [self.k_BKH, self.v_BKH, *angles, *([] if self.norms is None else self.norms[0])]

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated."""
        return self.cos_BR is not None


def decode(
    q_BNH,
    keys_BKHS,
    values_BKSH,
    lengths_B,
    rule: AttentionRule,
    blocks: Blocks,
    target: Target,
    mode=None,
    new=None,
    ring: bool = False,
):
    """Run both kernels; `api.decode_attention` describes and checks the operands."""
    parts, caches = attend_in_parts(
        q_BNH, keys_BKHS, values_BKSH, lengths_B, rule, blocks, target, new, ring
    )
    out = combine(*parts, rule.sinks_N, q_BNH.dtype, target, mode)
    return out if new is None else (out, *caches)


def split_count(shape, G: int, window: int | None, blocks: Blocks) -> int:
    """Return how many programs share the slots of one KV head, enough to fill the device.

    Args:
        shape: the shape of the values, [B, K, S, H].
        G: query heads per KV head.
        window: the window of the rule, or None.
        blocks: the tile sizes.
    """
    B, K, S, _ = shape
    seen = S if window is None else min(S, window + blocks.slots - 1)
    return min(
        pl.cdiv(blocks.programs, B * K * _row_tiles(G, blocks)[1]), pl.cdiv(seen, blocks.slots)
    )


def _row_tiles(G, blocks):
    """Return (rows per tile, number of tiles) for the query heads of a group."""
    rows = min(blocks.rows, padded(G))
    return rows, pl.cdiv(G, rows)


def attend_in_parts(
    q_BNH,
    keys_BKHS,
    values_BKSH,
    lengths_B,
    rule: AttentionRule,
    blocks: Blocks,
    target: Target,
    new=None,
    ring: bool = False,
):
    """Run the first kernel, whose programs each attend to a share of the slots.

    Returns:
        A pair of lists. The first has float32 arrays: the largest exponents [B, N, splits], the
        sums of weights [B, N, splits] and the weighted values [B, N, splits, H]. The largest
        exponent of an empty share is -inf, and its values are not written. The second list has the
        updated keys and values if there are new tokens, and is empty otherwise.
    """
    (B, N, H), K = q_BNH.shape, keys_BKHS.shape[1]
    G, splits = N // K, split_count(values_BKSH.shape, N // K, rule.window, blocks)
    rows, tiles = _row_tiles(G, blocks)
    new_arrays = [] if new is None else new.arrays

    def kernel(point, q_ref, keys_ref, values_ref, lengths_ref, *refs):
        new_refs, (highest_ref, total_ref, sums_ref, *caches) = (
            refs[: len(new_arrays)],
            refs[len(new_arrays) :],
        )
        program, split, of_rows = point
        b, head = program // K, program % K
        row = of_rows * rows + jnp.arange(rows, dtype=jnp.int32)
        (column,) = whole(H)
        heads, of_group = head * G + row, (row, G if G % rows else None)

        def load_q(part):
            return triton.load(
                q_ref,
                (b, heads[:, None], part.columns[None]),
                mask=within((row[:, None], of_group[1]), part.limit(1)),
            )

        position = lengths_ref[b] - 1
        if new is None:
            before, seen_as, parts = position, rule, [column]
        else:  # the slots before the new token, which itself takes one slot of the window
            before, seen_as, parts = position - 1, _before_the_token(rule), _rotated_parts(H, new)
        slots = Slots(keys_ref, values_ref, b, head, blocks.slots, parts, ring)
        if new is not None and rule.window == 1:  # the new token alone
            seen = (jnp.int32(0),) * 4
        else:
            seen = _share(seen_blocks(slots, before, before, seen_as.window), split, splits)
        takes_new = None if new is None else split == 0
        sees = seen[0] < seen[-1] if new is None else takes_new | (seen[0] < seen[-1])

        @pl.when(sees)
        def _():
            q, state = [load_q(part) for part in parts], nothing_seen(rows, H)
            if new is not None:
                token = _Token(new_refs, new, b, head, parts, column)
                q = token.queries(q, keys_ref.dtype)
                state = tuple(
                    jnp.where(takes_new, *both)
                    for both in zip(token.seen(q, keys_ref.dtype, rule), state)
                )
                # In a ring, other programs may read this slot at the same time. They mask it: it
                # counts as position - S, which is outside of the window, or as the new token's.
                slot = jax.lax.rem(position, jnp.int32(slots.length)) if ring else position
                pl.when(takes_new)(lambda: token.store(*caches, slot))
            q = [part.astype(keys_ref.dtype) for part in q]
            highest, total, sums = attend(q, slots, seen, before, before, seen_as, state, target)
            triton.store(highest_ref, (b, heads, split), highest, mask=within(of_group))
            triton.store(total_ref, (b, heads, split), total, mask=within(of_group))
            mask = within((row[:, None], of_group[1]), column.limit(1))
            triton.store(
                sums_ref, (b, heads[:, None], split, column.columns[None]), sums, mask=mask
            )

        @pl.when(jnp.logical_not(sees))
        def _():
            triton.store(
                highest_ref,
                (b, heads, split),
                jnp.full((rows,), -jnp.inf, jnp.float32),
                mask=within(of_group),
            )
            triton.store(
                total_ref, (b, heads, split), jnp.zeros((rows,), jnp.float32), mask=within(of_group)
            )

    out = [jax.ShapeDtypeStruct((B, N, splits, *tail), jnp.float32) for tail in ((), (), (H,))]
    caches = (
        []
        if new is None
        else [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (keys_BKHS, values_BKSH)]
    )
    found = triton.call(
        kernel,
        out + caches,
        grid=(B * K, splits, tiles),
        target=target,
        warps=blocks.warps(target),
        stages=blocks.stages,
        name="decode_attention",
        aliases={} if new is None else {1: 3, 2: 4},
    )(q_BNH, keys_BKHS, values_BKSH, lengths_B, *new_arrays)
    return found[:3], found[3:]


def _before_the_token(rule: AttentionRule) -> AttentionRule:
    """Return the rule for the slots before a query's own; its window is one slot smaller."""
    if rule.window is None:
        return rule
    return dataclasses.replace(rule, window=max(rule.window - 1, 1))


def _rotated_parts(H, new):
    """Split a head into the first and the second elements of its rotated pairs, and the rest."""
    if not new.rotates:
        return whole(H)
    R = new.cos_BR.shape[-1]
    pair = jnp.arange(padded(R), dtype=jnp.int32)
    first, second = (2 * pair, 2 * pair + 1) if new.interleaved else (pair, R + pair)
    rest = (
        [Part(2 * R + jnp.arange(padded(H - 2 * R), dtype=jnp.int32), H - 2 * R)]
        if 2 * R < H
        else []
    )
    return [Part(first, R), Part(second, R), *rest]


class _Token:
    """The new token of a sequence, for one KV head.

    Args:
        refs: the refs of `new.arrays`.
        new: the NewTokens.
        b: the index of the sequence.
        head: the index of the KV head.
        parts: the result of `_rotated_parts`.
        column: a whole head as one Part.
    """

    def __init__(self, refs, new, b, head, parts, column):
        self.b, self.head, self.parts, self.column = b, head, parts, column
        k_ref, v_ref, *refs = refs
        angle_refs, norm_refs = (refs[:2], refs[2:]) if new.rotates else ([], refs)
        pairs = jnp.arange(parts[0].columns.size, dtype=jnp.int32)
        self.angles = [
            triton.load(ref, (b, pairs), mask=within((pairs, parts[0].count))) for ref in angle_refs
        ]

        def load(ref, part):
            return triton.load(ref, (b, head, part.columns), mask=self._exists(part))

        self.k, self.v = [load(k_ref, part) for part in parts], load(v_ref, column)
        scales = [
            [
                triton.load(ref, (part.columns,), mask=self._exists(part)).astype(jnp.float32)
                for part in parts
            ]
            for ref in norm_refs
        ]
        self.norm_of_queries, self.norm_of_key = (
            (None, None) if new.norms is None else zip(scales, new.norms[1])
        )

    @staticmethod
    def _exists(part):
        index, count = part.limit(0)
        return within((index[:, 0], count))

    def queries(self, parts, dtype):
        """Apply norm and rotation to the parts [R, P] of queries; return them in `dtype`."""
        return self._prepared(parts, self.norm_of_queries, dtype)

    def key(self, dtype):
        """Apply norm and rotation to the parts of the key; return them in `dtype`."""
        return self._prepared(self.k, self.norm_of_key, dtype)

    def _prepared(self, parts, norm, dtype):
        parts = [part.astype(jnp.float32) for part in parts]
        if norm is not None:
            scales, epsilon = norm
            mean = sum((part * part).sum(axis=-1, keepdims=True) for part in parts) / np.float32(
                self.column.count
            )
            factor = jax.lax.rsqrt(mean + np.float32(epsilon))
            parts = [
                part * factor * scale[(None,) * (part.ndim - 1)]
                for part, scale in zip(parts, scales)
            ]
        if self.angles:
            first, second, *rest = parts
            cos, sin = (a[(None,) * (first.ndim - 1)] for a in self.angles)
            parts = [first * cos - second * sin, second * cos + first * sin, *rest]
        return [part.astype(dtype) for part in parts]

    def seen(self, q, dtype, rule):
        """Return the state of `attend` for rotated queries that have seen only this token."""
        k, wide = self.key(dtype), lambda a: a.astype(jnp.float32)
        products = sum((wide(a) * wide(b)[None]).sum(axis=1) for a, b in zip(q, k))
        sums = jnp.broadcast_to(wide(self.v.astype(dtype))[None], (products.size, self.v.size))
        return rule.exponents(products), jnp.ones_like(products), sums

    def store(self, keys_ref, values_ref, slot):
        """Write the token into the cache, unless the slot is outside of it."""

        @pl.when((slot >= 0) & (slot < values_ref.shape[2]))
        def _():
            for part, k in zip(self.parts, self.key(keys_ref.dtype)):
                triton.store(
                    keys_ref, (self.b, self.head, part.columns, slot), k, mask=self._exists(part)
                )
            value = self.v.astype(values_ref.dtype)
            triton.store(
                values_ref,
                (self.b, self.head, slot, self.column.columns),
                value,
                mask=self._exists(self.column),
            )


def _share(blocks, split, splits):
    """Restrict each range of `seen_blocks` to this split's even share of the blocks."""
    begin, *_, end = blocks
    count = pl.cdiv(end - begin, splits)
    first = jnp.minimum(begin + split * count, end)
    last = jnp.minimum(first + count, end)
    return tuple(jnp.clip(bound, first, last) for bound in blocks)


def combine(highest, total, sums, sinks_N, dtype, target: Target, mode: str | None = None):
    """Run the second kernel, which combines the shares of all splits.

    Args:
        highest: the largest exponents [B, N, splits].
        total: the sums of weights [B, N, splits].
        sums: the weighted values [B, N, splits, H].
        sinks_N: the sinks, or None.
        dtype: the dtype of the attention.
        target: the compilation target.
        mode: a mode of Activations, or None. A mode requires that H is a multiple of 32.

    Returns:
        The attention [B, N, H]. With a mode, a pair: the attention, and the Activations of its rows
        [B, N * H].
    """
    B, N, splits, H = sums.shape
    width = min(pl.next_power_of_2(H), max(GROUP, _COMBINED_TILE // pl.next_power_of_2(splits)))
    operands = [highest, total, sums] + ([] if sinks_N is None else [sinks_N])

    def kernel(point, *refs):
        out_ref, *act_refs = refs[len(operands) :]
        b, n = point[0] // N, point[0] % N
        first = point[1] * width
        columns = first + jnp.arange(width, dtype=jnp.int32)
        out = combined(*refs[: len(operands)], b=b, n=n, columns=columns).astype(out_ref.dtype)
        triton.store(
            out_ref, (b, n, columns), out, mask=within((columns, H if H % width else None))
        )
        if mode is not None:
            g = jnp.arange(width // GROUP, dtype=jnp.int32) + first // GROUP
            of_groups = out.astype(jnp.float32).reshape(-1, GROUP)
            activations.store(
                act_refs,
                b,
                g + n * (H // GROUP),
                of_groups,
                mode,
                mask=within((g, H // GROUP if H % width else None)),
            )

    shapes = [] if mode is None else activations.shapes(B, N * H // GROUP, mode, False)
    out, *found = triton.call(
        kernel,
        [jax.ShapeDtypeStruct((B, N, H), dtype), *shapes],
        grid=(B * N, pl.cdiv(H, width)),
        target=target,
        warps=_COMBINED_THREADS // target.wave,
        name="combine_attention",
    )(*operands)
    return out if mode is None else (out, activations.of_arrays(found, mode))


def combined(highest_ref, total_ref, sums_ref, sinks_ref=None, *, b, n, columns):
    """In a kernel: compute some columns of the output of head n of sequence b, in float32."""
    splits, H = sums_ref.shape[2:]
    split = jnp.arange(pl.next_power_of_2(splits), dtype=jnp.int32)
    exists = within((split, splits))
    exponents = triton.load(highest_ref, (b, n, split), mask=exists, other=-jnp.inf)
    highest = jnp.maximum(exponents.max(), LOWEST)
    sink = None if sinks_ref is None else sinks_ref[n] * np.float32(LOG2_E)
    highest = highest if sink is None else jnp.maximum(highest, sink)
    weights = jnp.exp2(exponents - highest)
    total = (weights * triton.load(total_ref, (b, n, split), mask=exists)).sum()
    total = total if sink is None else total + jnp.exp2(sink - highest)
    # Empty shares have no values; every share that is not empty has a finite exponent.
    written = jnp.broadcast_to(
        (exponents > -jnp.inf)[:, None] & (columns < H)[None], (split.size, columns.size)
    )
    sums = triton.load(sums_ref, (b, n, split[:, None], columns[None]), mask=written)
    return normalised((weights[:, None] * sums).sum(axis=0), total)
