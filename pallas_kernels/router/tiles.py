"""Groups pairs of a token and an expert by expert, into tiles of rows that share their weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.targets import Target

#: The largest product of tokens and experts for which the kernel is used: each of its
#: programs compares all of them.
MOST_CELLS = 1 << 14


class Tiles(NamedTuple):
    """Pairs in tiles of R rows. All pairs of a tile have the same expert. int32.

    Attributes:
        experts: [tiles], the expert of each tile, -1 for a tile without pairs.
        pairs: [tiles, R], the pair of each row. A row without a pair repeats the first pair of its
            tile; rows of a tile without pairs contain -1.
        tokens: [tiles, R], the token of each pair, or -1.
        rows: [P], the row of each pair, counted over all tiles.
    """

    experts: jax.Array
    pairs: jax.Array
    tokens: jax.Array
    rows: jax.Array


def by_expert(experts_TU, experts: int, rows: int, target: Target) -> Tiles:
    """Group pairs by expert, in the order of experts and, of one expert, of pairs.

    Args:
        experts_TU: the U experts of each token, int32. Pair t * U + u is expert u of token t.
        experts: E, the number of experts.
        rows: R, the number of rows in a tile.
        target: the compilation target.
    """
    T, U = experts_TU.shape
    if pl.next_power_of_2(T) * pl.next_power_of_2(experts) > MOST_CELLS:
        return reference(experts_TU, experts, rows)
    tiles = most_tiles(T * U, experts, rows)
    padded_T, padded_E, padded_rows = map(pl.next_power_of_2, (T, experts, rows))

    def kernel(point, ids_ref, experts_ref, pairs_ref, tokens_ref, rows_ref):
        (u,) = point
        token, expert = (jnp.arange(n, dtype=jnp.int32) for n in (padded_T, padded_E))
        exists = token < T
        ids = [triton.load(ids_ref, (token, i), mask=exists, other=-1) for i in range(U)]
        chosen = sum((of_token[:, None] == expert[None]).astype(jnp.int32) for of_token in ids)
        count = chosen.sum(axis=0)
        tiles_of = (count + (rows - 1)) // rows
        first = (jnp.cumsum(tiles_of) - tiles_of) * rows
        start, end = jnp.cumsum(chosen, axis=0) - chosen + first[None], (first + count)[None]

        # This program writes expert u of all tokens.
        own = triton.load(ids_ref, (token, u), mask=exists, other=-1)
        is_own = own[:, None] == expert[None]
        row = jnp.where(is_own, start, 0).sum(axis=1)
        row += sum(
            ((of_token == own) & (i < u)).astype(jnp.int32) for i, of_token in enumerate(ids)
        )
        last = jnp.where(is_own, end, 0).sum(axis=1)
        leads = exists & (row % rows == 0)
        triton.store(rows_ref, (token * U + u,), row, mask=exists)
        # In the interpreter, an index in range would be written even where the mask is false.
        triton.store(experts_ref, (jnp.where(leads, row // rows, tiles),), own, mask=leads)
        # The first pair of a tile also fills the rows that have no pair.
        row_of_tile = jnp.arange(padded_rows, dtype=jnp.int32)[None]
        rest = leads[:, None] & (row[:, None] + row_of_tile >= last[:, None])
        mask = (exists[:, None] & (row_of_tile == 0) | rest) & (row_of_tile < rows)
        at = row[:, None] + row_of_tile
        at = jnp.where(mask, at // rows, tiles), at % rows
        for ref, value in ((pairs_ref, token * U + u), (tokens_ref, token)):
            triton.store(ref, at, jnp.broadcast_to(value[:, None], mask.shape), mask=mask)

        tile = jnp.arange(pl.next_power_of_2(tiles), dtype=jnp.int32)
        is_empty = (tile >= tiles_of.sum()) & (tile < tiles) & (u == 0)
        index = jnp.where(is_empty, tile, tiles)
        triton.store(experts_ref, (index,), jnp.full_like(tile, -1), mask=is_empty)
        mask = is_empty[:, None] & (row_of_tile < rows)
        at = jnp.where(mask, index[:, None], tiles), jnp.broadcast_to(row_of_tile, mask.shape)
        for ref in (pairs_ref, tokens_ref):
            triton.store(ref, at, jnp.full(mask.shape, -1, jnp.int32), mask=mask)

    shapes = (tiles,), (tiles, rows), (tiles, rows), (T * U,)
    threads = min(512, max(128, padded_T * padded_E // 16))
    run = triton.call(
        kernel,
        [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes],
        grid=(U,),
        target=target,
        warps=threads // target.wave,
        name="pairs_by_expert",
    )
    return Tiles(*run(experts_TU.astype(jnp.int32)))


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """Return the number of tiles that any choice of experts fits into."""
    return min(pairs, (pairs + min(experts, pairs) * (rows - 1)) // rows)


def reference(experts_TU, experts: int, rows: int) -> Tiles:
    """Compute `by_expert` in plain jnp."""
    (T, U), tiles = experts_TU.shape, most_tiles(experts_TU.size, experts, rows)
    ids_P = experts_TU.reshape(-1).astype(jnp.int32)
    order_P = jnp.argsort(ids_P, stable=True).astype(jnp.int32)
    expert_E = jnp.arange(experts, dtype=jnp.int32)
    count_E = jnp.sum(ids_P[:, None] == expert_E[None], axis=0, dtype=jnp.int32)
    tiles_E = (count_E + rows - 1) // rows
    end_E = jnp.cumsum(tiles_E)
    # The row of each pair: its rank within its expert, after the tiles of the experts before.
    rank_P = jnp.arange(T * U, dtype=jnp.int32) - (jnp.cumsum(count_E) - count_E)[ids_P[order_P]]
    place_P = jnp.zeros(T * U, jnp.int32).at[order_P].set(rank_P)
    place_P += ((end_E - tiles_E) * rows)[ids_P]
    # Otherwise XLA computes a row again for each element that is gathered by it.
    place_P = jax.lax.optimization_barrier(place_P)
    tile = jnp.arange(tiles, dtype=jnp.int32)
    expert = jnp.searchsorted(end_E, tile, side="right", method="compare_all").astype(jnp.int32)
    pairs = (
        jnp.full(tiles * rows, -1, jnp.int32).at[place_P].set(jnp.arange(T * U, dtype=jnp.int32))
    )
    pairs = pairs.reshape(tiles, rows)
    pairs = jnp.where(pairs < 0, pairs[:, :1], pairs)
    tokens = jnp.where(pairs < 0, -1, pairs // U)
    return Tiles(jnp.where(expert < experts, expert, -1), pairs, tokens, place_P)
