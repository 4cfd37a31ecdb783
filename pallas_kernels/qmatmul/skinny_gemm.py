"""Skinny GEMM: products of tens of rows of activations with packed weights.

The weight is dequantised in registers, to the activations' 16-bit float dtype, and then multiplied
on the matrix units. Each step is one product of `rows` outputs with all inputs of some groups.

A sum over inputs can be computed in any order. This kernel's order keeps a group in the thread that
read it. The matrix units read `run` inputs of a row from one thread, and the next `run` inputs from
the next of `lanes` threads. So each of these threads has its own groups. `skinny_operand` brings x
into the same order.

With hundreds of rows, it is faster to dequantise once and use XLA's GEMM, because here each tile of
activations dequantises the weight again.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, scale_and_minimum
from pallas_kernels.qmatmul import blocks, codes
from pallas_kernels.qmatmul.epilogue import finished
from pallas_kernels.qmatmul.partial_sums import finish
from pallas_kernels.qmatmul.product import Product, stored_groups
from pallas_kernels.qmatmul.skinny_operand import in_tiles
from pallas_kernels.targets import Target, of_family


def multiply(
    x_MK,
    products: list[Product],
    dtype,
    *,
    target: Target,
    tile=None,
    rows=None,
    norm=None,
    epsilon: float = 0.0,
) -> list[jax.Array]:
    """Run the kernels; `api.multiply_skinny` describes the operands.

    The first launch brings x into the kernel's order. If programs share the inputs of a row, or if
    the weights of a product have separate launches, the last launch computes the epilogues.

    Raises:
        ValueError: M is not the number of `experts` times a power of two, at least 16.
    """
    M = len(x_MK) if rows is None else len(rows)
    experts = products[0].experts
    together = M if experts is None else _rows_of_an_expert(M, experts.shape[0])
    tile = tile or blocks.skinny_gemm(together, products, target)
    if experts is not None:
        tile = dataclasses.replace(tile, splits=1, batch=together)
    columns = min(max(16, pl.next_power_of_2(together)), tile.batch)
    weights = [weight for product in products for weight in product.weights]
    steps = pl.cdiv(max(map(stored_groups, weights)), tile.groups)
    x = in_tiles(
        x_MK,
        tile,
        steps,
        len(x_MK) if rows is not None else pl.cdiv(M, columns) * columns,
        norm=norm,
        epsilon=epsilon,
        experts=experts if rows is None else None,
        target=target,
    )

    def launch(products, dtype):
        return _launch(
            x, rows, products, dtype, M=M, tile=tile, columns=columns, steps=steps, target=target
        )

    if len(weights) == 1 or of_family(blocks.SEVERAL_WEIGHTS, target):
        launches = [products]
    else:
        launches = [[Product((weight,), experts=experts)] for weight in weights]
    if tile.splits == 1 and len(launches) == 1:
        return launch(products, dtype)
    sums = itertools.chain.from_iterable(launch(of, None) for of in launches)
    return finish(list(sums), products, dtype, target)


def _launch(x, rows, products, dtype, *, M, tile, columns, steps, target) -> list[jax.Array]:
    """Compute products of M rows in one launch.

    Args:
        x: the result of `in_tiles`.
        rows: the row of x for each row of the output, or None.
        products: the products.
        dtype: the dtype of the outputs; None to compute no epilogues, but partial sums.
        M: the number of rows of the output.
        tile: the tile sizes.
        columns: how many rows of the output a program computes.
        steps: the number of steps over the inputs of a row.
        target: the compilation target.

    Returns:
        The output [M, N] of each product, or the partial sums [splits, M, N] of each weight.
    """
    programs = [pl.cdiv(product.rows, tile.rows) for product in products]
    inputs, structure = jax.tree.flatten((products, rows))
    outputs = [
        [jax.ShapeDtypeStruct((M, product.rows), dtype)]
        if dtype is not None
        else [jax.ShapeDtypeStruct((tile.splits, M, product.rows), jnp.float32)]
        * len(product.weights)
        for product in products
    ]

    def kernel(point, x_ref, *refs):
        product_refs, row_ref = jax.tree.unflatten(structure, refs[: len(inputs)])
        out_refs = iter(refs[len(inputs) :])
        x = _Columns(x_ref, row_ref, point[1] * columns, columns, GROUP * tile.groups)
        shares = triton.shares(point[0], programs)
        for product, outs, (tile_index, wanted) in zip(product_refs, outputs, shares):
            program = _Program(product, tile, steps, M, target)
            run = functools.partial(
                program.run, x, [next(out_refs) for _ in outs], tile_index, point[2]
            )
            expert = ()
            if product.experts is not None:
                expert = (product.experts[point[1]],)
                wanted.append(expert[0] >= 0)
            triton.when_all(wanted, functools.partial(run, expert))

    return triton.call(
        kernel,
        list(itertools.chain.from_iterable(outputs)),
        grid=(sum(programs), pl.cdiv(M, columns), tile.splits),
        target=target,
        warps=tile.warps,
        stages=tile.stages,
        name="multiply_many",
        early=tile.early,
    )(x, *inputs)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The columns of a tile: rows of x from `first` on, or those whose indices are in `row_ref`."""

    x_ref: object
    row_ref: object
    first: jax.Array
    count: int
    width: int

    def of_step(self, j):
        """Load the inputs of step j, [count, width]."""
        if self.row_ref is None:
            return self.x_ref[pl.ds(self.first, self.count), pl.ds(j * self.width, self.width)]
        rows = self.row_ref[pl.ds(self.first, self.count)][:, None]
        return self.x_ref[rows, j * self.width + jnp.arange(self.width, dtype=jnp.int32)[None]]


@dataclasses.dataclass(frozen=True)
class _Program:
    """Computes a tile of a product, which holds refs.

    Attributes:
        product: the product.
        tile: the tile sizes.
        steps: the number of steps over the inputs of a row.
        columns: M, the rows of the output.
        target: the compilation target.
    """

    product: Product
    tile: blocks.MatrixTile
    steps: int
    columns: int
    target: Target

    def run(self, x: _Columns, out_refs, tile_index, split, expert):
        """Compute the tile and store it.

        Args:
            x: the columns.
            out_refs: the output [M, N], or the partial sums [splits, M, N] of each weight.
            tile_index: the index of the tile in the rows of the weight.
            split: the index of the share of the inputs.
            expert: the (index,) of the matrix in its stack, or ().
        """
        tile, product = self.tile, self.product
        N, M = product.rows, self.columns
        n = tile_index * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
        row = jnp.minimum(n, N - 1) if N % tile.rows else n
        share = pl.cdiv(self.steps, tile.splits)
        first = split * share
        totals = jax.lax.fori_loop(
            first,
            jnp.minimum(first + share, self.steps),
            lambda j, totals: self._step(j, totals, x, (*expert, row[:, None])),
            (jnp.zeros((tile.rows, x.count), jnp.float32),) * len(product.weights),
        )
        at = x.first + jnp.arange(x.count, dtype=jnp.int32)[None], n[:, None]
        inside = None if M % x.count == N % tile.rows == 0 else (at[0] < M) & (at[1] < N)
        if len(out_refs[0].shape) == 3:
            for total, ref in zip(totals, out_refs):
                triton.store(ref, (split, *at), total, mask=inside)
            return
        factors = [
            (
                None if scale is None else scale[expert[0] if expert else 0].astype(jnp.float32),
                None
                if bias is None
                else triton.load(bias, (*expert, row)).astype(jnp.float32)[:, None],
            )
            for _, scale, bias in product.of_each_weight
        ]
        y = finished(totals, factors, product.activation)
        if product.residual is not None:
            y += triton.load(product.residual, at, mask=inside).astype(jnp.float32)
        (ref,) = out_refs
        triton.store(ref, at, y.astype(ref.dtype), mask=inside)

    def _step(self, j, totals, x, index):
        """Add the products of the inputs of step j to the totals of each weight."""
        tile, of_x, more = self.tile, x.of_step(j), []
        for total, weight in zip(totals, self.product.weights):
            read = _Tile(weight, index, j * tile.groups, tile.groups, self.steps)
            values = _in_order(list(_values(read, of_x.dtype, self.target)), tile)
            more.append(total + triton.dot(values, of_x.T))
        return tuple(more)


def _rows_of_an_expert(M, tiles):
    rows, rest = divmod(M, tiles)
    if rest or rows < 16 or rows & (rows - 1):
        raise ValueError(
            f"{M} rows for {tiles} experts are {M / tiles:g} each: it must be a power of two"
            " from 16"
        )
    return rows


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
    """Loads arrays [rows, count] of some rows of a weight, for `count` groups from `first` on.

    weight: holds refs.
    index: (row indices [rows, 1],), or (expert, row indices) in a stack.
    steps: the number of tiles along a row; the weight may have fewer groups.
    """

    def __init__(self, weight, index, first, count, steps):
        self.refs, self.packing, self.groups = weight.planes, weight.packing, stored_groups(weight)
        self.index, self.first, self.count = index, first, count
        self.is_masked = steps * count != self.groups

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
            self.refs[plane], index, mask=mask if self.is_masked else None, hint="once"
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
