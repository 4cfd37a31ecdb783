"""Kernels of a step of the gated delta net, in one launch or in two.

Plain XLA needs twelve launches, two of which read all memories. Here, each memory is read once and
written once.

The convolution's state is shifted in place. So a program that shifts it must be the only one that
reads it, or run later. A single launch therefore has one program per key head, which computes its
value heads one after the other. Two launches have many more programs. In the first launch, each
program computes some columns of one value head's memory, and repeats the convolution of the query
and the key. The second launch applies the norm and the gate, which need all columns, and shifts the
state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.delta_rule.blocks import Blocks
from pallas_kernels.delta_rule.operands import DeltaHeads, Parameters, Token
from pallas_kernels.recurrence.operands import RecurrentState
from pallas_kernels.recurrence.steps import (
    like,
    of_quantized,
    quantized_shapes,
    softplus,
    store_quantized,
    when_real,
)
from pallas_kernels.short_convolution import Window, silu
from pallas_kernels.targets import Target


class Operands(NamedTuple):
    """The operands of a step: arrays, or refs in a kernel. lengths_B is int32, or None."""

    state: RecurrentState
    token: Token
    parameters: Parameters
    lengths_B: jax.Array | None

    def window(self, b, first, count: int) -> Window:
        """Loads `count` channels of the convolution from the channel `first` on."""
        channels = first + jnp.arange(count, dtype=jnp.int32)
        x = self.token.qkv_BC[b, channels]
        return Window(b, channels, x, self.state.inputs_BLC, self.parameters.filters_LC)

    def factors(self, b, n):
        """Computes the decay of a memory, and the share by which it moves to the new value."""
        alpha, beta, dt, a = (
            ref[index].astype(jnp.float32)
            for ref, index in (
                (self.token.alpha_BN, (b, n)),
                (self.token.beta_BN, (b, n)),
                (self.parameters.dt_N, n),
                (self.parameters.a_N, n),
            )
        )
        return jnp.exp(softplus(alpha + dt) * a), 1 / (1 + jnp.exp(-beta))

    def when_real(self, b):
        """Returns a decorator that runs a function only if the sequence has a new token."""
        return when_real(self.lengths_B, b)


def step(operands: Operands, heads: DeltaHeads, epsilons, mode, blocks: Blocks, target: Target):
    """Runs the kernels; `api.step` describes and checks the operands."""
    if blocks.columns >= heads.value_width:
        return _at_once(operands, heads, epsilons, mode, blocks, target)
    sums_BNW, memory = _remember(operands, heads, epsilons[0], blocks, target)
    out, inputs, *quantized = _finish(sums_BNW, operands, heads, epsilons[1], mode, blocks, target)
    return out, RecurrentState(memory, inputs), *quantized


def _at_once(operands, heads, epsilons, mode, blocks, target):
    """Computes a step in one launch, whose programs compute all value heads of a key head."""
    (B, N), K, W = operands.token.beta_BN.shape, heads.key_heads, heads.value_width
    arrays, structure = jax.tree.flatten(operands)

    def kernel(point, *refs):
        found = jax.tree.unflatten(structure, refs[: len(arrays)])
        out_ref, memory_ref, inputs_ref, *act_refs = refs[len(arrays) :]
        b, k = point[0] // K, point[0] % K
        column = jnp.arange(W, dtype=jnp.int32)
        # Each memory is loaded before the previous one is used, to overlap loads with arithmetic.
        memory = _load_memory(found, b, heads.value_head(k, 0), heads, column)
        query, key = _query_and_key_windows(found, b, k, heads)
        values = [
            found.window(b, 2 * heads.first_key + heads.value_head(k, i) * W, W)
            for i in range(heads.shared)
        ]
        q, key_vector = _query_and_key(query, key, heads, epsilons[0])
        for i, value in enumerate(values):
            n, this = heads.value_head(k, i), memory
            if i + 1 < heads.shared:
                memory = _load_memory(found, b, heads.value_head(k, i + 1), heads, column)
            sums = _update(found, memory_ref, this, q, key_vector, value, b, n, column, heads)
            _store_output(sums, found, out_ref, act_refs, b, n, epsilons[1], mode)
        # No thread may shift the state while another thread still loads it.
        triton.barrier(target)

        @found.when_real(b)
        def _():
            for window in (query, key, *values):
                window.store(inputs_ref)

    out, memory, inputs, *acts = triton.call(
        kernel,
        [
            jax.ShapeDtypeStruct((B, N, W), operands.token.qkv_BC.dtype),
            *map(like, operands.state),
            *quantized_shapes(B, N * W, mode),
        ],
        grid=(B * K,),
        target=target,
        warps=blocks.threads // target.wave,
        name="delta_step",
        aliases={0: 1, 1: 2},
    )(*arrays)
    return out, RecurrentState(memory, inputs), *of_quantized(acts, mode)


def _remember(operands, heads, epsilon, blocks, target):
    """Updates all memories; returns outputs before the norm, float32 [B, N, W], and memories."""
    (B, N), W = operands.token.beta_BN.shape, heads.value_width
    arrays, structure = jax.tree.flatten(operands)

    def kernel(point, *refs):
        found = jax.tree.unflatten(structure, refs[: len(arrays)])
        sums_ref, memory_ref = refs[len(arrays) :]
        program, part = point
        b, n, first = program // N, program % N, part * blocks.columns
        column = first + jnp.arange(blocks.columns, dtype=jnp.int32)
        memory = _load_memory(found, b, n, heads, column)
        windows = _query_and_key_windows(found, b, heads.key_head(n), heads)
        value = found.window(b, 2 * heads.first_key + n * W + first, blocks.columns)
        q, k = _query_and_key(*windows, heads, epsilon)
        sums = _update(found, memory_ref, memory, q, k, value, b, n, column, heads)
        triton.store(sums_ref, (b, n, column), sums)

    return triton.call(
        kernel,
        [jax.ShapeDtypeStruct((B, N, W), jnp.float32), like(operands.state.memory_BNHW)],
        grid=(B * N, W // blocks.columns),
        target=target,
        warps=max(1, blocks.threads // target.wave),
        name="delta_step",
        aliases={0: 1},
    )(*arrays)


def _finish(sums_BNW, operands, heads, epsilon, mode, blocks, target):
    """Applies the norm and the gate to outputs, and shifts the convolution's state."""
    (B, N), W = operands.token.beta_BN.shape, heads.value_width
    # The memory is not an operand, because the first launch has already updated it.
    inputs, operands = operands.state.inputs_BLC, operands._replace(state=None)
    arrays, structure = jax.tree.flatten((inputs, sums_BNW, operands))

    def kernel(point, *refs):
        inputs_ref, sums_ref, found = jax.tree.unflatten(structure, refs[: len(arrays)])
        found = found._replace(state=RecurrentState(None, inputs_ref))
        out_ref, inputs_ref, *act_refs = refs[len(arrays) :]
        b, n = point[0] // N, point[0] % N
        value = found.window(b, 2 * heads.first_key + n * W, W)
        sums = sums_ref[b, n, jnp.arange(W, dtype=jnp.int32)]
        _store_output(sums, found, out_ref, act_refs, b, n, epsilon, mode)

        @found.when_real(b)
        def _():
            value.store(inputs_ref)

            @pl.when(n < heads.key_heads)
            def _():
                for window in _query_and_key_windows(found, b, n, heads):
                    window.store(inputs_ref)

    out, inputs, *acts = triton.call(
        kernel,
        [
            jax.ShapeDtypeStruct((B, N, W), operands.token.qkv_BC.dtype),
            like(inputs),
            *quantized_shapes(B, N * W, mode),
        ],
        grid=(B * N,),
        target=target,
        warps=max(1, blocks.threads_finishing // target.wave),
        name="delta_step_finish",
        aliases={0: 1},
    )(*arrays)
    return out, inputs, *of_quantized(acts, mode)


def _load_memory(found, b, n, heads, column):
    row = jnp.arange(heads.key_width, dtype=jnp.int32)
    return found.state.memory_BNHW[b, n, row[:, None], column[None]]


def _query_and_key_windows(found, b, k, heads):
    width = heads.key_width
    return [found.window(b, first + k * width, width) for first in (0, heads.first_key)]


def _query_and_key(query, key, heads, epsilon):
    """Computes query and key, both normalised to length 1; the query is then scaled."""
    q, k = (_unit(silu(window.output()), epsilon) for window in (query, key))
    return q * np.float32(heads.key_width**-0.5), k


def _unit(x, epsilon):
    return x * jax.lax.rsqrt((x * x).sum() + np.float32(epsilon))


def _update(found, memory_ref, memory, q, k, value, b, n, column, heads):
    """Updates columns of a memory [H, columns] and returns the query's result, float32.

    The result is computed from the old memory, so that both sums are over the same array.
    """
    decay, share = found.factors(b, n)
    held = (memory * k[:, None]).sum(axis=0) * decay
    change = share * (silu(value.output()) - held)
    read = (memory * q[:, None]).sum(axis=0) * decay + (q * k).sum() * change

    @found.when_real(b)
    def _():
        row = jnp.arange(heads.key_width, dtype=jnp.int32)
        moved = decay * memory + k[:, None] * change[None]
        triton.store(memory_ref, (b, n, row[:, None], column[None]), moved)

    return read


def _store_output(sums, found, out_ref, act_refs, b, n, epsilon, mode):
    """Applies norm and gate to the output of a head, stores it, and quantises it given a mode."""
    W = sums.size
    column = jnp.arange(W, dtype=jnp.int32)
    scale = found.parameters.scale_W[column].astype(jnp.float32)
    gate = found.token.gate_BNW[b, n, column].astype(jnp.float32)
    factor = jax.lax.rsqrt((sums * sums).sum() / np.float32(W) + np.float32(epsilon))
    out = (sums * factor * scale * silu(gate)).astype(out_ref.dtype)
    triton.store(out_ref, (b, n, column), out)
    store_quantized(act_refs, b, n * W, out, mode)
