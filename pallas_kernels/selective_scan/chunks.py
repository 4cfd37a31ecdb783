"""The selective state space for many tokens of each sequence, in chunks, as matrix products.

This is the state-space dual form (Dao and Gu, 2024, arXiv:2405.21060). There are three launches:

1. All chunks at once: sum the logarithms of decays.
2. One chunk after the other: compute the next memory from the previous one and the tokens of the
   chunk. Memories at the beginnings of chunks are stored.
3. All chunks at once: read the outputs from these memories and the tokens of the chunk.

The tokens of a chunk change the memory independently of one another, so only the addition to the
memory waits for the previous chunk. Computing the changes of all chunks at once, and adding them in
a launch of their own, was slower: it stores and loads as many numbers as the memories once more.

The matrix units compute all products.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.recurrence.chunks import Decays, Place
from pallas_kernels.selective_scan.blocks import ChunkBlocks
from pallas_kernels.selective_scan.operands import Tokens
from pallas_kernels.targets import Target


class _Steps(NamedTuple):
    """The time steps of all chunks, with chunks of C tokens joined: T here is a multiple of C.

    Attributes:
        dt_BNT: The time steps; 0 after the last token.
        weights_BNT: The time steps times the decays from each token to the end of its chunk.
        decays_BNI: The decays of the I chunks.
    """

    dt_BNT: jax.Array
    weights_BNT: jax.Array
    decays_BNI: jax.Array


def scan(tokens: Tokens, a_N, d_N, memory_BNHW, exact: bool, blocks: ChunkBlocks, target: Target):
    """Runs the kernels; `api.scan` describes and checks the operands."""
    dot = functools.partial(triton.dot_float32, target=target, exact=exact)
    steps = _sum_decays(tokens, a_N, blocks, target)
    starts_BNIHW, memory_BNHW = _remember(tokens, steps, memory_BNHW, dot, blocks, target)
    out_BTNH = _read(tokens, steps.dt_BNT, a_N, d_N, starts_BNIHW, dot, blocks, target)
    return out_BTNH, memory_BNHW


class _Chunk:
    """Chunk i of head n, and of its group."""

    def __init__(self, b, n, i, tokens: Tokens, C: int):
        (_, T, N, _), K = tokens.x_BTNH.shape, tokens.b_BTKW.shape[2]
        self.tokens = _indices(i, C)
        self.head = Place(b, n, self.tokens, T)
        self.group = Place(b, n // (N // K), self.tokens, T)


def _sum_decays(tokens: Tokens, a_N, blocks: ChunkBlocks, target: Target) -> _Steps:
    (B, T, N, _), C = tokens.x_BTNH.shape, blocks.tokens
    chunks = pl.cdiv(T, C)

    def kernel(point, dt_ref, a_ref, dt_out_ref, weights_ref, decays_ref):
        i, n, b = point
        at = Place(b, n, _indices(i, C), T)
        dt = at.numbers(dt_ref)
        decays = Decays(dt * a_ref[n])
        triton.store(dt_out_ref, (b, n, at.tokens), dt)
        triton.store(weights_ref, (b, n, at.tokens), dt * decays.until())
        triton.store(decays_ref, (b, n, i), decays.whole())

    shapes = (B, N, chunks * C), (B, N, chunks * C), (B, N, chunks)
    return _Steps(
        *triton.call(
            kernel,
            [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
            grid=(chunks, N, B),
            target=target,
            warps=1,
            name="scan_decays",
        )(tokens.dt_BTN, a_N)
    )


def _remember(tokens: Tokens, steps: _Steps, memory_BNHW, dot, blocks, target: Target):
    """Returns the memories at the beginnings of the I chunks, and the last ones."""
    (B, T, N, H), W, C = tokens.x_BTNH.shape, tokens.b_BTKW.shape[-1], blocks.tokens
    chunks, rows, columns = pl.cdiv(T, C), math.gcd(H, blocks.rows), min(blocks.columns, W)

    def kernel(point, x_ref, b_ref, weights_ref, decays_ref, memory_ref, starts_ref, last_ref):
        share, n, b = point
        row = _indices(share // (W // columns), rows)
        column = _indices(share % (W // columns), columns)

        def step(i, memory):
            triton.store(starts_ref, (b, n, i, row[:, None], column[None]), memory)
            at = _Chunk(b, n, i, tokens, C)
            x = at.head.columns(x_ref, row) * weights_ref[b, n, at.tokens][None]
            return decays_ref[b, n, i] * memory + dot(x, at.group.rows(b_ref, column))

        place = b, n, row[:, None], column[None]
        triton.store(last_ref, place, jax.lax.fori_loop(0, chunks, step, memory_ref[place]))

    shapes = (B, N, chunks, H, W), memory_BNHW.shape
    return triton.call(
        kernel,
        [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=((H // rows) * (W // columns), N, B),
        target=target,
        warps=blocks.threads // target.wave,
        stages=blocks.stages,
        name="scan_remember",
        aliases={4: 1},
    )(tokens.x_BTNH, tokens.b_BTKW, steps.weights_BNT, steps.decays_BNI, memory_BNHW)


def _read(tokens, dt_BNT, a_N, d_N, starts_BNIHW, dot, blocks: ChunkBlocks, target: Target):
    """Returns the outputs, float32 [B, T, N, H]."""
    (B, T, N, H), W, C = tokens.x_BTNH.shape, tokens.b_BTKW.shape[-1], blocks.tokens
    width, count = min(blocks.width, pl.next_power_of_2(H)), min(blocks.part, W)
    shares = pl.cdiv(H, width)

    def kernel(point, x_ref, dt_ref, b_ref, c_ref, a_ref, d_ref, starts_ref, out_ref):
        program, n, b = point
        i, share = program // shares, program % shares
        at, row = _Chunk(b, n, i, tokens, C), _indices(share, width)
        exists = None if H % width == 0 else row < H

        def step(p, sums):
            scores, read = sums
            part = _indices(p, count)
            c, b_columns = at.group.rows(c_ref, part), at.group.columns(b_ref, part)
            mask = None if exists is None else exists[None]
            memory = triton.load(starts_ref, (b, n, i, row[None], part[:, None]), mask)
            return scores + dot(c, b_columns), read + dot(c, memory)

        sums = jnp.zeros((C, C), jnp.float32), jnp.zeros((C, width), jnp.float32)
        scores, read = jax.lax.fori_loop(0, W // count, step, sums)
        dt = dt_ref[b, n, at.tokens]
        decays = Decays(dt * a_ref[n])
        x = at.head.rows(x_ref, row, exists)
        scores *= decays.between() * dt[None]
        out = decays.since()[:, None] * read + dot(scores, x) + d_ref[n] * x
        mask = at.head.is_real[:, None]
        mask = mask if exists is None else mask & exists[None]
        triton.store(out_ref, (b, at.tokens[:, None], n, row[None]), out, mask)

    x_BTNH, _, b_BTKW, c_BTKW = tokens
    return triton.call(
        kernel,
        jax.ShapeDtypeStruct((B, T, N, H), jnp.float32),
        grid=(pl.cdiv(T, C) * shares, N, B),
        target=target,
        warps=blocks.threads_reading // target.wave,
        name="scan_read",
    )(x_BTNH, dt_BNT, b_BTKW, c_BTKW, a_N, d_N, starts_BNIHW)


def _indices(share, count: int):
    """Returns the indices of a share of `count`."""
    return share * count + jnp.arange(count, dtype=jnp.int32)
