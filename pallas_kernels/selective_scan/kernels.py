"""Kernels of a step of the selective state space, in two launches.

In the first launch, each program computes some rows of a head's memory, and repeats the convolution
of the directions. The second launch applies the norm, which needs the outputs of a group of heads,
and shifts the state of the convolution, which several programs of the first launch read.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.recurrence.operands import RecurrentState
from pallas_kernels.recurrence.steps import (
    like,
    of_quantized,
    quantized_shapes,
    softplus,
    store_quantized,
    when_real,
)
from pallas_kernels.selective_scan.blocks import Blocks
from pallas_kernels.selective_scan.operands import Parameters, ScanHeads
from pallas_kernels.short_convolution import Window, silu
from pallas_kernels.targets import Target


class Operands(NamedTuple):
    """The operands of a step: arrays, or refs in a kernel. lengths_B is int32, or None."""

    state: RecurrentState
    projected_BF: jax.Array
    parameters: Parameters
    lengths_B: jax.Array | None

    def window(self, b, first, count: int, heads: ScanHeads) -> Window:
        """Loads `count` channels of the convolution from the channel `first` on."""
        channels = first + jnp.arange(count, dtype=jnp.int32)
        x = self.projected_BF[b, heads.inner + channels]
        return Window(b, channels, x, self.state.inputs_BLC, self.parameters.filters_LC)

    def seen(self, b, first, count: int, heads: ScanHeads):
        """Computes the outputs of the convolution on these channels, float32."""
        out = self.window(b, first, count, heads).output()
        if self.parameters.bias_C is not None:
            bias = self.parameters.bias_C[first + jnp.arange(count, dtype=jnp.int32)]
            out += bias.astype(jnp.float32)
        return silu(out)

    def number(self, name: str, n):
        """Loads the parameter of head n."""
        return getattr(self.parameters, name)[n].astype(jnp.float32)


def step(operands: Operands, heads: ScanHeads, epsilon, mode, blocks: Blocks, target: Target):
    """Runs the kernels; `api.step` describes and checks the operands."""
    *sums, memory = _remember(operands, heads, blocks, target)
    out, inputs, *acts = _finish(sums, operands, heads, epsilon, mode, blocks, target)
    return out, RecurrentState(memory, inputs), *acts


def _remember(operands: Operands, heads: ScanHeads, blocks: Blocks, target: Target):
    """Updates all memories.

    Returns:
        The gated outputs before the norm, float32 [B, I]; the sums of squares of what each program
        computed of them, float32 [B, programs of a sequence]; and the memories.
    """
    B, (N, H, W) = len(operands.projected_BF), (heads.heads, heads.head_width, heads.state_width)
    rows = math.gcd(H, blocks.rows)
    tiles = math.gcd(H // rows, blocks.tiles)
    parts = H // (rows * tiles)
    arrays, structure = jax.tree.flatten(operands)

    def kernel(point, *refs):
        found = jax.tree.unflatten(structure, refs[: len(arrays)])
        gated_ref, squares_ref, memory_ref = refs[len(arrays) :]
        program, part = point
        b, n = program // N, program % N
        tile = [(part * tiles + i) * rows + jnp.arange(rows, dtype=jnp.int32) for i in range(tiles)]
        places = [(b, n, row[:, None], jnp.arange(W, dtype=jnp.int32)[None]) for row in tile]
        # Each memory is loaded before the previous one is used, to overlap loads with arithmetic.
        memory = found.state.memory_BNHW[places[0]]
        first_b = heads.inner + n // heads.shared * W
        towards = found.seen(b, first_b, W, heads)
        along = found.seen(b, first_b + heads.groups * W, W, heads)
        dt = found.projected_BF[b, heads.inner + heads.channels + n].astype(jnp.float32)
        dt_bias, a, d = (found.number(name, n) for name in ("dt_N", "a_N", "d_N"))
        dt, squares = softplus(dt + dt_bias), 0
        decay = jnp.exp(dt * a)
        for i, row in enumerate(tile):
            x = found.seen(b, n * H + (part * tiles + i) * rows, rows, heads)
            gate = found.projected_BF[b, n * H + row].astype(jnp.float32)
            this = memory
            if i + 1 < tiles:
                memory = found.state.memory_BNHW[places[i + 1]]
            this = decay * this + (dt * x)[:, None] * towards[None]
            out = (this * along[None]).sum(axis=1) + d * x
            gated = out * silu(gate)
            triton.store(gated_ref, (b, n * H + row), gated)
            squares += (gated * gated).sum()
            store = functools.partial(triton.store, memory_ref, places[i], this)
            when_real(found.lengths_B, b)(store)
        triton.store(squares_ref, (b, n * parts + part), squares)

    shapes = (B, heads.inner), (B, N * parts)
    return triton.call(
        kernel,
        [
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
            like(operands.state.memory_BNHW),
        ],
        grid=(B * N, parts),
        target=target,
        warps=max(1, blocks.threads // target.wave),
        name="scan_step",
        aliases={0: 2},
    )(*arrays)


def _finish(sums, operands: Operands, heads: ScanHeads, epsilon, mode, blocks, target):
    """Applies the norm to gated outputs, and shifts the convolution's state."""
    # The memory is not an operand, because the first launch has already updated it.
    inputs, operands = operands.state.inputs_BLC, operands._replace(state=None)
    arrays, structure = jax.tree.flatten((inputs, sums, operands))
    B, of_group = len(inputs), heads.group_width
    # The channels of a program are all of one group, or all of directions.
    count = math.gcd(math.gcd(of_group, 2 * heads.groups * heads.state_width), blocks.channels)
    # The sums of squares of a group are contiguous.
    squares = sums[1].shape[1] // heads.groups

    def kernel(point, *refs):
        inputs_ref, (gated_ref, squares_ref), found = jax.tree.unflatten(
            structure, refs[: len(arrays)]
        )
        found = found._replace(state=RecurrentState(None, inputs_ref))
        out_ref, inputs_ref, *act_refs = refs[len(arrays) :]
        part, b = point
        first = part * count

        @pl.when(first < heads.inner)
        def _():
            channels = first + jnp.arange(count, dtype=jnp.int32)
            out = gated_ref[b, channels]
            if found.parameters.scale_I is not None:
                index = jnp.arange(pl.next_power_of_2(squares), dtype=jnp.int32)
                at = b, first // of_group * squares + index
                total = triton.load(squares_ref, at, mask=index < squares).sum()
                factor = jax.lax.rsqrt(total / np.float32(of_group) + np.float32(epsilon))
                out *= factor * found.parameters.scale_I[channels].astype(jnp.float32)
            out = out.astype(out_ref.dtype)
            triton.store(out_ref, (b, channels), out)
            store_quantized(act_refs, b, first, out, mode)

        @when_real(found.lengths_B, b)
        def _():
            found.window(b, first, count, heads).store(inputs_ref)

    out, inputs, *acts = triton.call(
        kernel,
        [
            jax.ShapeDtypeStruct((B, heads.inner), operands.projected_BF.dtype),
            like(inputs),
            *quantized_shapes(B, heads.inner, mode),
        ],
        grid=(heads.channels // count, B),
        target=target,
        warps=max(1, blocks.threads_finishing // target.wave),
        name="scan_step_finish",
        aliases={0: 1},
    )(*arrays)
    return out, inputs, *of_quantized(acts, mode)
