"""Decode: one new token of each sequence attends to its cache. Reading the cache once is the time it takes (Flash-Decoding, 2023).

All query heads of a KV group are rows of one tile, so a group of any size reads its cache once. One sequence has few KV heads, a GPU
many multiprocessors: the filled slots are split evenly over programs, which write their largest exponent, sum of weights and weighted
values; a second kernel combines them, and quantises what it has for the product that follows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.attention.blocks import Blocks
from pallas_kernels.attention.scoring import LOG2_E, LOWEST, Scoring
from pallas_kernels.attention.slots import Slots, attend, normalised, padded, seen_blocks, within
from pallas_kernels.packing import GROUP
from pallas_kernels.qmatmul import activations
from pallas_kernels.targets import Target

#: Numbers of a tile of the second kernel: 64 registers of a thread.
_COMBINED_TILE, _COMBINED_THREADS = 8192, 128


def decode(q_BNH, keys_BKHS, values_BKSH, lengths_B, sinks_N, scoring: Scoring, blocks: Blocks, target: Target, mode: str | None = None):
    """-> [B, N, H] in q's dtype, with a mode also the Activations that it becomes. Checked by `api`."""
    parts = attend_in_parts(q_BNH, keys_BKHS, values_BKSH, lengths_B, scoring, blocks, target)
    return combine(*parts, sinks_N, q_BNH.dtype, target, mode)


def split_count(shape, G: int, window: int | None, blocks: Blocks) -> int:
    """Programs that share the slots of one KV head: as many as fill the device. shape: that of the values, [B, K, S, H]."""
    B, K, S, _ = shape
    seen = S if window is None else min(S, window + blocks.slots - 1)
    return min(pl.cdiv(blocks.programs, B * K * _row_tiles(G, blocks)[1]), pl.cdiv(seen, blocks.slots))


def _row_tiles(G, blocks):
    """(rows of a tile, tiles) for the heads of a group."""
    rows = min(blocks.rows, padded(G))
    return rows, pl.cdiv(G, rows)


def attend_in_parts(q_BNH, keys_BKHS, values_BKSH, lengths_B, scoring: Scoring, blocks: Blocks, target: Target):
    """-> float32: largest exponents [B, N, splits], -inf for an empty share; sums of weights, likewise; weighted values [B, N, splits, H].

    The values of an empty share are not written.
    """
    (B, N, H), K = q_BNH.shape, keys_BKHS.shape[1]
    G, splits = N // K, split_count(values_BKSH.shape, N // K, scoring.window, blocks)
    rows, tiles = _row_tiles(G, blocks)

    def kernel(q_ref, keys_ref, values_ref, lengths_ref, highest_ref, total_ref, sums_ref):
        b, head, split = pl.program_id(0) // K, pl.program_id(0) % K, pl.program_id(1)
        row = pl.program_id(2) * rows + jnp.arange(rows, dtype=jnp.int32)
        column = jnp.arange(padded(H), dtype=jnp.int32)[None]
        heads, of_group = head * G + row, within((row, G if G % rows else None))
        mask = within((row[:, None], G if G % rows else None), (column, H if H < column.size else None))
        position = lengths_ref[b] - 1
        slots = Slots(keys_ref, values_ref, b, head, blocks.slots)
        seen = _share(seen_blocks(slots, position, position, scoring.window), split, splits)

        @pl.when(seen[0] < seen[-1])
        def _():
            q = triton.load(q_ref, (b, heads[:, None], column), mask=mask).astype(keys_ref.dtype)
            highest, total, sums = attend(q, slots, seen, position, position, scoring)
            triton.store(highest_ref, (b, heads, split), highest, mask=of_group)
            triton.store(total_ref, (b, heads, split), total, mask=of_group)
            triton.store(sums_ref, (b, heads[:, None], split, column), sums, mask=mask)

        @pl.when(seen[0] >= seen[-1])
        def _():
            triton.store(highest_ref, (b, heads, split), jnp.full((rows,), -jnp.inf, jnp.float32), mask=of_group)
            triton.store(total_ref, (b, heads, split), jnp.zeros((rows,), jnp.float32), mask=of_group)

    out = [jax.ShapeDtypeStruct((B, N, splits, *tail), jnp.float32) for tail in ((), (), (H,))]
    return triton.call(
        kernel, out, grid=(B * K, splits, tiles),
        target=target, warps=blocks.warps(target), stages=blocks.stages, name="decode_attention",
    )(q_BNH, keys_BKHS, values_BKSH, lengths_B)  # fmt: skip


def _share(blocks, split, splits):
    """The part of `seen_blocks` that is this split's: an even share, cut out of each of its ranges."""
    begin, *_, end = blocks
    count = pl.cdiv(end - begin, splits)
    first = jnp.minimum(begin + split * count, end)
    last = jnp.minimum(first + count, end)
    return tuple(jnp.clip(bound, first, last) for bound in blocks)


def combine(highest, total, sums, sinks_N, dtype, target: Target, mode: str | None = None):
    """What `attend_in_parts` returns, and sinks [N] or None -> [B, N, H] in `dtype`.

    mode: where it is given, H is a multiple of 32, and the Activations in that mode of the rows [B, N * H] come as well.
    """
    B, N, splits, H = sums.shape
    width = min(pl.next_power_of_2(H), max(GROUP, _COMBINED_TILE // pl.next_power_of_2(splits)))
    operands = [highest, total, sums] + ([] if sinks_N is None else [sinks_N])

    def kernel(*refs):
        (out_ref, *act_refs), programs = refs[len(operands) :], pl.program_id(0)
        b, n = programs // N, programs % N
        first = pl.program_id(1) * width
        columns = first + jnp.arange(width, dtype=jnp.int32)
        out = combined(*refs[: len(operands)], b=b, n=n, columns=columns).astype(out_ref.dtype)
        triton.store(out_ref, (b, n, columns), out, mask=within((columns, H if H % width else None)))
        if mode is not None:
            g = jnp.arange(width // GROUP, dtype=jnp.int32) + first // GROUP
            of_groups = out.astype(jnp.float32).reshape(-1, GROUP)
            activations.store(act_refs, b, g + n * (H // GROUP), of_groups, mode, mask=within((g, H // GROUP if H % width else None)))

    shapes = [] if mode is None else activations.shapes(B, N * H // GROUP, mode, False)
    out, *found = triton.call(
        kernel, [jax.ShapeDtypeStruct((B, N, H), dtype), *shapes], grid=(B * N, pl.cdiv(H, width)),
        target=target, warps=_COMBINED_THREADS // target.wave, name="combine_attention",
    )(*operands)  # fmt: skip
    return out if mode is None else (out, activations.of_arrays(found, mode))


def combined(highest_ref, total_ref, sums_ref, sinks_ref=None, *, b, n, columns):
    """Some columns of the output of head n of sequence b, float32, in a kernel."""
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
    written = jnp.broadcast_to((exponents > -jnp.inf)[:, None] & (columns < H)[None], (split.size, columns.size))
    sums = triton.load(sums_ref, (b, n, split[:, None], columns[None]), mask=written)
    return normalised((weights[:, None] * sums).sum(axis=0), total)
