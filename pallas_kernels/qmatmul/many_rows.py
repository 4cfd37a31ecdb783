"""Products of some tens of rows of activations with packed weights: batches, short prompts.

The weight is dequantised in registers, to the activations' narrow float type, and goes to the matrix units from there. A sum over inputs
may be taken in any order: one input of each of many groups makes a tile, which is what a mask and a shift of a word of each group
give, so nothing is ever moved within a tile.

It loses to dequantising once and XLA's product where the rows are hundreds: each tile of rows of activations dequantises again.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, Packing, scale_and_minimum
from pallas_kernels.qmatmul import blocks
from pallas_kernels.qmatmul.few_rows import MAGIC, unsigned_words
from pallas_kernels.targets import Target


def multiply(x_MK, planes, packing: Packing, *, target: Target, tile=None):
    """x [M, K] in bfloat16 or float16 times the packed [N, K] -> float32 [M, N]. Weights are rounded to x's type."""
    (M, K), N = x_MK.shape, planes["codes"].shape[0]
    groups, names = K // GROUP, sorted(planes)
    tile = tile or blocks.many_rows(M, N, groups, target)
    columns = min(max(16, pl.next_power_of_2(M)), tile.batch)
    steps = pl.cdiv(groups, tile.groups)
    share = pl.cdiv(steps, tile.splits)

    def kernel(x_ref, *refs):
        refs, out_ref = dict(zip(names, refs)), refs[-1]
        n = pl.program_id(0) * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)[:, None]
        m = pl.program_id(1) * columns + jnp.arange(columns, dtype=jnp.int32)
        split = pl.program_id(2)

        def step(j, total):
            g = j * tile.groups + jnp.arange(tile.groups, dtype=jnp.int32)
            inside = (n < N) & (g < groups)[None]
            load = lambda name, *index: triton.load(refs[name], (n, *index), mask=inside)
            values = _values(load, g[None], packing, x_ref.dtype, target)
            for element, value in enumerate(values):
                x = triton.load(x_ref, (element, g[:, None], m[None]), mask=(g < groups)[:, None] & (m < M)[None])
                total = total + triton.dot(value, x)
            return total

        first = split * share
        last = jnp.minimum(first + share, steps)
        total = jax.lax.fori_loop(first, last, step, jnp.zeros((tile.rows, columns), jnp.float32))
        triton.store(out_ref, (split, m[None], n), total, mask=(m < M)[None] & (n < N))

    by_element = x_MK.reshape(M, groups, GROUP).transpose(2, 1, 0)
    parts = triton.call(
        kernel, jax.ShapeDtypeStruct((tile.splits, M, N), jnp.float32),
        grid=(pl.cdiv(N, tile.rows), pl.cdiv(M, columns), tile.splits), target=target, warps=tile.warps, stages=1, name="multiply_many",
    )(by_element, *(planes[name] for name in names))  # fmt: skip
    return parts[0] if tile.splits == 1 else parts.sum(axis=0)


def _values(load, g, packing, dtype, target):
    """One after the other, for each of the 32 inputs of a group: the values of [rows, groups] in `dtype`."""

    def get(half, name):
        return load("d", jnp.broadcast_to(g // packing.span, g.shape)) if name == "d" else load(name, jnp.full_like(g, half), g)

    scales = [scale_and_minimum(packing, lambda name, half=half: get(half, name)) for half in range(packing.halves)]
    words, offset = unsigned_words([load("codes", jnp.full_like(g, i), g) for i in range(packing.bits)], packing, target)
    lifted = np.float32(2**23 + offset)
    for element in range(GROUP):
        scale, minimum = scales[element // (GROUP // packing.halves)]
        bits = ((words[element // 4] >> np.uint32(8 * (element % 4))) & np.uint32(255)) | MAGIC
        value = (jax.lax.bitcast_convert_type(bits, jnp.float32) - lifted) * scale
        yield (value if minimum is None else value + minimum).astype(dtype)


assert GROUP == 4 * POSITIONS
