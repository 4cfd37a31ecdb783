"""The gated delta rule for many tokens of each sequence, in chunks, as matrix products.

The changes of a memory within a chunk depend on one another through the keys. With C tokens, they
solve a triangular system of C equations, the WY form of a product of Householder-like matrices
(Yang et al., 2024, arXiv:2412.06464). There are three launches:

1. All chunks at once: solve the system, with the memory left open. The changes are
   `values - keys @ memory`, for the memory at the beginning of the chunk.
2. One chunk after the other: compute the changes and the next memory. Memories at the beginnings of
   chunks are stored.
3. All chunks at once: read the outputs from these memories and the changes.

The matrix units compute all products.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.delta_rule.blocks import ChunkBlocks
from pallas_kernels.delta_rule.operands import Tokens
from pallas_kernels.recurrence.chunks import Decays, Place, parts, rows_and_columns
from pallas_kernels.targets import Target

#: Rows of the diagonal blocks of a triangular system.
BLOCK = 16


class _Systems(NamedTuple):
    """The solved systems of all chunks, with chunks of C tokens joined: T here is a multiple of C.

    Attributes:
        values_BNTW: The changes for an empty memory.
        keys_BNTH: What is multiplied by the memory, and then subtracted.
        since_BNT: The decay from the beginning of the chunk to each token.
        until_BNT: The decay from each token to the end of the chunk.
    """

    values_BNTW: jax.Array
    keys_BNTH: jax.Array
    since_BNT: jax.Array
    until_BNT: jax.Array


def rule(tokens: Tokens, memory_BNHW, exact: bool, blocks: ChunkBlocks, target: Target):
    """Runs the kernels; `api.rule` describes and checks the operands."""
    dot = functools.partial(triton.dot_float32, target=target, exact=exact)
    systems = _solve(tokens, dot, blocks, target)
    changes_BNTW, starts_BNIHW, memory_BNHW = _remember(
        tokens, systems, memory_BNHW, dot, blocks, target
    )
    out_BTNW = _read(tokens, systems, changes_BNTW, starts_BNIHW, dot, blocks, target)
    return out_BTNW, memory_BNHW


def _solve(tokens: Tokens, dot, blocks: ChunkBlocks, target: Target) -> _Systems:
    (B, T, N, H), W, C = tokens.k_BTNH.shape, tokens.v_BTNW.shape[-1], blocks.tokens
    chunks = pl.cdiv(T, C)

    def kernel(point, k_ref, v_ref, log_decay_ref, beta_ref, values_ref, keys_ref, *factor_refs):
        i, n, b = point
        at = Place(b, n, i * C + jnp.arange(C, dtype=jnp.int32), T)
        log_decay, beta = at.numbers(log_decay_ref), at.numbers(beta_ref)
        decays = Decays(log_decay)
        since = decays.since()
        for ref, factors in zip(factor_refs, (since, decays.until())):
            triton.store(ref, (b, n, at.tokens), factors)
        overlaps = sum(
            dot(at.rows(k_ref, part), at.columns(k_ref, part)) for part in parts(H, blocks.part)
        )
        inverse = _inverse(beta[:, None] * overlaps * decays.between(), dot)
        # Keys are loaded again, because registers are scarce.
        for out_ref, ref, factor in (
            (values_ref, v_ref, beta),
            (keys_ref, k_ref, beta * since),
        ):
            for part in parts(ref.shape[-1], blocks.part):
                out = dot(inverse, at.rows(ref, part) * factor[:, None])
                triton.store(out_ref, (b, n, at.tokens[:, None], part[None]), out)

    of_tokens = B, N, chunks * C
    shapes = (*of_tokens, W), (*of_tokens, H), of_tokens, of_tokens
    return _Systems(
        *triton.call(
            kernel,
            [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
            grid=(chunks, N, B),
            target=target,
            warps=blocks.threads_solving // target.wave,
            name="delta_solve",
        )(*tokens[1:])
    )


def _remember(
    tokens: Tokens, systems: _Systems, memory_BNHW, dot, blocks: ChunkBlocks, target: Target
):
    """Returns all changes, the memories at the beginnings of the I chunks, and the last ones."""
    (B, T, N, H), W, C = tokens.k_BTNH.shape, tokens.v_BTNW.shape[-1], blocks.tokens
    chunks, columns = pl.cdiv(T, C), min(blocks.columns, W)

    def kernel(point, k_ref, values_ref, keys_ref, since_ref, until_ref, memory_ref, *out_refs):
        changes_ref, starts_ref, last_ref = out_refs
        share, n, b = point
        column = share * columns + jnp.arange(columns, dtype=jnp.int32)
        rows = parts(H, blocks.part)

        def step(i, memory):
            at = Place(b, n, i * C + jnp.arange(C, dtype=jnp.int32), T)
            until = until_ref[b, n, at.tokens]
            decay = since_ref[b, n, i * C + (C - 1)]
            changes = values_ref[b, n, at.tokens[:, None], column[None]]
            for row, part in zip(rows, memory):
                triton.store(starts_ref, (b, n, i, row[:, None], column[None]), part)
                changes -= dot(keys_ref[b, n, at.tokens[:, None], row[None]], part)
            triton.store(changes_ref, (b, n, at.tokens[:, None], column[None]), changes)
            return tuple(
                decay * part + dot(at.columns(k_ref, row) * until[None], changes)
                for row, part in zip(rows, memory)
            )

        places = [(b, n, row[:, None], column[None]) for row in rows]
        first = tuple(memory_ref[place] for place in places)
        for place, part in zip(places, jax.lax.fori_loop(0, chunks, step, first)):
            triton.store(last_ref, place, part)

    shapes = systems.values_BNTW.shape, (B, N, chunks, H, W), memory_BNHW.shape
    return triton.call(
        kernel,
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(W // columns, N, B),
        target=target,
        warps=blocks.threads // target.wave,
        stages=blocks.stages,
        name="delta_remember",
        aliases={5: 2},
    )(tokens.k_BTNH, *systems, memory_BNHW)


def _read(tokens, systems, changes_BNTW, starts_BNIHW, dot, blocks: ChunkBlocks, target: Target):
    """Returns the outputs, float32 [B, T, N, W]."""
    (B, T, N, H), W, C = tokens.k_BTNH.shape, tokens.v_BTNW.shape[-1], blocks.tokens
    columns = min(blocks.columns_read, W)

    def kernel(point, q_ref, k_ref, log_decay_ref, since_ref, changes_ref, starts_ref, out_ref):
        program, n, b = point
        i, share = program // (W // columns), program % (W // columns)
        at = Place(b, n, i * C + jnp.arange(C, dtype=jnp.int32), T)
        column = share * columns + jnp.arange(columns, dtype=jnp.int32)
        since, scores, out = since_ref[b, n, at.tokens][:, None], 0, 0
        for part in parts(H, blocks.part):
            q = at.rows(q_ref, part)
            scores += dot(q, at.columns(k_ref, part))
            out += dot(q * since, starts_ref[b, n, i, part[:, None], column[None]])
        between = Decays(at.numbers(log_decay_ref)).between()
        out += dot(scores * between, changes_ref[b, n, at.tokens[:, None], column[None]])
        index = b, at.tokens[:, None], n, column[None]
        triton.store(out_ref, index, out, mask=at.is_real[:, None])

    operands = tokens.q_BTNH, tokens.k_BTNH, tokens.log_decay_BTN, systems.since_BNT
    return triton.call(
        kernel,
        jax.ShapeDtypeStruct((B, T, N, W), jnp.float32),
        grid=(pl.cdiv(T, C) * (W // columns), N, B),
        target=target,
        warps=blocks.threads_reading // target.wave,
        name="delta_read",
    )(*operands, changes_BNTW, starts_BNIHW)


def _inverse(matrix_CC, dot):
    """Inverts 1 + the strictly lower part of a matrix.

    The diagonal blocks are inverted column by column, all at once. The rest is a matrix of blocks:
    the inverse of 1 - m is (1 + m)(1 + m^2)(1 + m^4)..., where some power of m is 0.
    """
    row, column = rows_and_columns(len(matrix_CC))
    is_in_block = row // BLOCK == column // BLOCK
    lower = jnp.where(row > column, matrix_CC, 0)
    in_blocks = jnp.where(is_in_block, lower, 0)

    def eliminate(i, inverse):
        factors = jnp.where(column % BLOCK == i, in_blocks, 0).sum(axis=1)
        solved = jnp.where(row % BLOCK == i, inverse, 0).sum(axis=0)
        return inverse - jnp.where(is_in_block, factors[:, None] * solved[None], 0)

    one = jnp.where(row == column, 1.0, 0.0)
    inverse = jax.lax.fori_loop(0, BLOCK - 1, eliminate, one)
    blocks = len(matrix_CC) // BLOCK
    if blocks > 1:
        power = dot(inverse, jnp.where(is_in_block, 0, -lower))
        inverse += dot(power, inverse)
        for _ in range(blocks.bit_length() - 2):
            power = dot(power, power)
            inverse += dot(power, inverse)
    return inverse
