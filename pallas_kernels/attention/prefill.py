"""Prefill: T new tokens of each sequence attend to its cache, which already holds them.

The algorithm is FlashAttention-2 (Dao, 2023). The rows of a query tile are consecutive pairs
(token, head of the KV group), with the token as the major index. So the G heads of a group share
their reads of the cache, and few tokens fill a tile. The triangle that the diagonal wastes is G
times smaller. Tiles that see many slots start first. Decode's kernel is faster if T * G is small
and the cache is long, because here one program reads all slots that a tile sees.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.blocks import Blocks
from pallas_kernels.attention.rule import LOG2_E, AttentionRule
from pallas_kernels.attention.slots import (
    Slots,
    attend,
    normalised,
    nothing_seen,
    padded,
    seen_blocks,
    whole,
    within,
)
from pallas_kernels.targets import Target


def prefill(
    q_BTNH,
    keys_BKHS,
    values_BKSH,
    starts_B,
    rule: AttentionRule,
    filled_B,
    blocks: Blocks,
    target: Target,
):
    """Run the kernel; `api.prefill_attention` describes and checks the operands."""
    (B, T, N, H), K = q_BTNH.shape, keys_BKHS.shape[1]
    G = N // K
    rows = min(blocks.rows, padded(T * G))
    tiles = pl.cdiv(T * G, rows)
    counts = 0 if filled_B is None else 1  # operands with the number of filled slots

    def kernel(point, q_ref, keys_ref, values_ref, starts_ref, *refs):
        filled_ref, sinks_ref, out_ref = refs[:counts], refs[counts:-1], refs[-1]
        b, head, first_row = point[0] // K, point[0] % K, (tiles - 1 - point[1]) * rows
        row, column = (
            first_row + jnp.arange(rows, dtype=jnp.int32),
            jnp.arange(padded(H), dtype=jnp.int32)[None],
        )
        tokens, heads, rows_end = row // G, head * G + row % G, T * G if T * G % rows else None
        at = b, tokens[:, None], heads[:, None], column
        mask = within((row[:, None], rows_end), (column, H if H < column.size else None))
        q = triton.load(q_ref, at, mask=mask).astype(keys_ref.dtype)
        start = starts_ref[b]
        filled = start + T
        for ref in filled_ref:
            filled = ref[b]
        first = rule.last_seen(start, first_row // G, filled)
        last = rule.last_seen(start, jnp.minimum((first_row + rows - 1) // G, T - 1), filled)
        limit = filled if rule.symmetric else None
        slots = Slots(keys_ref, values_ref, b, head, blocks.slots, whole(H), limit=limit)
        seen = seen_blocks(slots, first, last, rule.window)
        positions = rule.last_seen(start, tokens[:, None], filled)
        state = attend([q], slots, seen, positions, last, rule, nothing_seen(rows, H), target)
        for ref in sinks_ref:
            state = _with_sink(state, triton.load(ref, (heads,), mask=within((row, rows_end))))
        _, total, sums = state
        triton.store(out_ref, at, normalised(sums, total[:, None]).astype(out_ref.dtype), mask=mask)

    operands = [q_BTNH, keys_BKHS, values_BKSH, starts_B]
    operands += [] if filled_B is None else [filled_B]
    operands += [] if rule.sinks_N is None else [rule.sinks_N]
    return triton.call(
        kernel,
        jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype),
        grid=(B * K, tiles),
        target=target,
        warps=blocks.warps(target),
        stages=blocks.stages,
        name="prefill_attention",
    )(*operands)


def _with_sink(state, sink):
    """Add a sink to the state: a logit [R] that takes a share of the weights and has no value."""
    highest, total, sums = state
    sink = sink * np.float32(LOG2_E)
    higher = jnp.maximum(highest, sink)
    fade = jnp.exp2(highest - higher)
    return higher, total * fade + jnp.exp2(sink - higher), sums * fade[:, None]
