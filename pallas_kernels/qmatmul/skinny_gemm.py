"""Skinny GEMM: products of tens of rows of activations with packed weights.

The weight is dequantised in registers, to the activations' 16-bit float dtype, and then multiplied
on the matrix units. Each step is one product of `rows` outputs with all inputs of some groups.

A sum over inputs can be computed in any order. This kernel's order keeps a group in the thread that
read it. The matrix units read `run` inputs of a row from one thread, and the next `run` inputs from
the next of `lanes` threads. So each of these threads has its own groups. x is brought into the same
order before the kernel runs.

With hundreds of rows, it is faster to dequantise once and use XLA's GEMM, because here each tile of
activations dequantises the weight again.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, scale_and_minimum
from pallas_kernels.qmatmul import blocks, codes
from pallas_kernels.qmatmul.product import Weight
from pallas_kernels.targets import Target


def multiply(
    x_MK, weight: Weight, *, target: Target, tile=None, experts=None, rows=None
) -> jax.Array:
    """Run the kernel; `api.multiply_skinny` describes the operands.

    Raises:
        ValueError: M is not the length of `experts` times a power of two, at least 16.
    """
    planes, packing, N = weight.planes, weight.packing, weight.rows
    M = len(x_MK) if rows is None else len(rows)
    groups, names = planes["codes"].shape[-1], sorted(planes)  # with padding
    together = M if experts is None else _rows_of_an_expert(M, experts.shape[0])
    tile = tile or blocks.skinny_gemm(together, N, groups, packing, target)
    if experts is not None:
        tile = dataclasses.replace(tile, splits=1, batch=together)
    columns = min(max(16, pl.next_power_of_2(together)), tile.batch)
    steps, width = pl.cdiv(groups, tile.groups), GROUP * tile.groups
    share = pl.cdiv(steps, tile.splits)

    def kernel(point, x_ref, *refs):
        refs, (*of_tiles, out_ref) = dict(zip(names, refs)), refs[len(names) :]
        expert_ref, row_ref = (*of_tiles, None, None)[:2]
        n = point[0] * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
        m = point[1] * columns
        split = point[2]

        def run(*expert):
            x_rows = None
            if row_ref is not None:
                x_rows = row_ref[pl.ds(m, columns)][:, None]

            def x_of_step(j):
                if x_rows is None:
                    return x_ref[pl.ds(m, columns), pl.ds(j * width, width)]
                return x_ref[x_rows, j * width + jnp.arange(width, dtype=jnp.int32)[None]]

            def step(j, total):
                row = jnp.minimum(n, N - 1) if N % tile.rows else n
                read = _Tile(
                    refs, packing, (*expert, row[:, None]), j * tile.groups, tile.groups, groups
                )
                values = _in_order(list(_values(read, x_ref.dtype, target)), tile)
                return total + triton.dot(values, x_of_step(j).T)

            first = split * share
            last = jnp.minimum(first + share, steps)
            total = jax.lax.fori_loop(
                first, last, step, jnp.zeros((tile.rows, columns), jnp.float32)
            )
            at = m + jnp.arange(columns, dtype=jnp.int32)[None], n[:, None]
            inside = None if M % columns == N % tile.rows == 0 else (at[0] < M) & (at[1] < N)
            triton.store(out_ref, (split, *at), total, mask=inside)

        if expert_ref is None:
            run()
        else:
            expert = expert_ref[point[1]]
            pl.when(expert >= 0)(lambda: run(expert))

    sums = triton.call(
        kernel,
        jax.ShapeDtypeStruct((tile.splits, M, N), jnp.float32),
        grid=(pl.cdiv(N, tile.rows), pl.cdiv(M, columns), tile.splits),
        target=target,
        warps=tile.warps,
        stages=tile.stages,
        name="multiply_many",
        early=tile.early,
    )(
        _as_tiles(x_MK, tile, steps, None if rows is not None else pl.cdiv(M, columns) * columns),
        *(planes[name] for name in names),
        *(numbers for numbers in (experts, rows) if numbers is not None),
    )
    return sums[0] if tile.splits == 1 else sums.sum(axis=0)


def _rows_of_an_expert(M, tiles):
    rows, rest = divmod(M, tiles)
    if rest or rows < 16 or rows & (rows - 1):
        raise ValueError(
            f"{M} rows for {tiles} experts are {M / tiles:g} each: it must be a power of two"
            " from 16"
        )
    return rows


def _as_tiles(x, tile, steps, rows):
    """Pad x [M, K] to `rows` rows and whole tiles, with inputs in the order of `_in_order`."""
    M, K = x.shape
    rows = rows or M
    x = jnp.pad(x, ((0, rows - M), (0, steps * tile.groups * GROUP - K)))
    x = x.reshape(rows, -1, 2, 2).swapaxes(2, 3)  # `codes.BYTE_ORDER`
    x = x.reshape(rows, steps, tile.lanes, tile.groups // tile.lanes, GROUP // tile.run, tile.run)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(rows, -1)


def _in_order(values, tile):
    """Put the inputs of groups next to each other -> [rows, inputs of all groups].

    The order is `run` inputs of a group, then `run` inputs of the next of `lanes` groups.

    values: an array [rows, groups] for each input of a group.
    """
    rows, groups = values[0].shape
    values = [value.reshape(rows, tile.lanes, groups // tile.lanes) for value in values]
    while len(values) > 1:  # the highest bit of an input's number becomes an axis first
        half = len(values) // 2
        values = [jnp.stack(pair, axis=-1) for pair in zip(values[:half], values[half:])]
    axes = values[0].ndim - tile.run.bit_length() + 1
    return (
        values[0]
        .transpose(0, *range(2, axes), 1, *range(axes, values[0].ndim))
        .reshape(rows, groups * GROUP)
    )


class _Tile:
    """Loads arrays [rows, count] of some rows, for `count` groups from `first` on.

    index: (row indices [rows, 1],), or (expert, row indices) in a stack.
    """

    def __init__(self, refs, packing, index, first, count, groups):
        self.refs, self.packing, self.index, self.first, self.count, self.groups = (
            refs,
            packing,
            index,
            first,
            count,
            groups,
        )

    def codes(self, word):
        return self._load("codes", word)

    def scale(self, half):
        found = scale_and_minimum(
            self.packing, lambda name: self._shared("d") if name == "d" else self._load(name, half)
        )
        return [factors and factors.product() for factors in found]

    def _shared(self, plane):
        """Load entries that `span` groups share, each entry once."""
        span = min(self.packing.span, self.count)
        loaded = self._load(plane, span=span, first=self.first // self.packing.span)
        return jnp.broadcast_to(loaded[:, :, None], (*loaded.shape, span)).reshape(-1, self.count)

    def _load(self, plane, *index, span=1, first=None):
        g = jnp.arange(self.count // span, dtype=jnp.int32)[None]
        g = (self.first if first is None else first) + g
        shape = (self.index[-1].shape[0], self.count // span)
        mask = jnp.broadcast_to(
            g < self.groups // self.packing.span if plane == "d" else g < self.groups, shape
        )
        index = tuple(jnp.broadcast_to(jnp.int32(i), shape) for i in (*self.index, *index, g))
        return triton.load(
            self.refs[plane], index, mask=mask if self.groups % self.count else None, hint="once"
        )


def _values(read, dtype, target):
    """Yields the values [rows, groups] in `dtype` of each of the 32 inputs of a group.

    The inputs are in the order of positions, and within a position, of `codes.BYTE_ORDER`.
    """
    packing = read.packing
    scales = [read.scale(half) for half in range(packing.halves)]
    words = [read.codes(i) for i in range(packing.bits)]
    if dtype == jnp.bfloat16 and codes.is_exact_in_bfloat16(packing, target):
        yield from codes.in_bfloat16(words, [scale for scale, _ in scales], target)
        return
    for number, (lifted, above) in enumerate(codes.lifted(words, packing, target)):
        scale, minimum = scales[number // (GROUP // packing.halves)]
        if minimum is not None:
            value = triton.multiply_add(lifted - above, scale, minimum, target)
        elif packing.scale == "e8m0" or target.interpret:
            value = (lifted - above) * scale
        else:
            # scale * -above is exact: `above` is 2^n times a number of few bits.
            value = triton.multiply_add(lifted, scale, scale * -above, target)
        yield value.astype(dtype)
