"""GEMV: products of a few rows of activations with packed weights, for decoding and small batches.

Reading the weight takes most of the time. So a program reads some rows of the weight once, word by
word, and multiplies them in registers (`dots`). Several products of one input share a launch. The
epilogue (scale, bias, activation function, residual) is computed before the output is written.

With many rows of activations, the matrix units are faster, because here each additional row costs
as much arithmetic as the first.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, scale_and_minimum
from pallas_kernels.qmatmul import blocks, codes
from pallas_kernels.qmatmul.activations import Activations
from pallas_kernels.qmatmul.dots import ActivationGroups, WeightGroups
from pallas_kernels.qmatmul.epilogue import finished
from pallas_kernels.qmatmul.product import Product, Weight
from pallas_kernels.targets import Target


def multiply(
    x: Activations,
    products: list[Product],
    dtype,
    target: Target,
    tile: blocks.Tile | None = None,
    shared=None,
) -> list[jax.Array]:
    """Run the kernel; `api.multiply` describes and checks the operands.

    With experts, a program computes a single row of the output, unless `shared` lists several.

    Returns:
        The output of each product, [M, N], or [P, N] with experts, in `dtype`.

    Raises:
        ValueError: the bytes of the activations are `in_turn`, but those of a weight are not.
    """
    if x.in_turn and not codes.come_in_turn(
        itertools.chain.from_iterable(product.packings for product in products), target
    ):
        raise ValueError(
            "bytes of activations are in turn, those of weights are not:"
            f" {[product.packings for product in products]}"
        )
    pairs = products[0].pairs
    rows = pairs or x.rows
    if shared is None:
        tile = tile or blocks.gemv(x.rows, products, x.mode, target)
        batch = 1 if pairs else min(tile.batch, rows)
        count_of_tiles = pl.cdiv(rows, batch)
    else:
        count_of_tiles, batch = shared.shape
        tile = tile or blocks.gemv(x.rows, products, x.mode, target, batch)
    programs = [
        pl.cdiv(product.rows, tile.outputs(product.rows) * tile.blocks) for product in products
    ]
    inputs, structure = jax.tree.flatten((x, products, shared))
    outputs = [jax.ShapeDtypeStruct((rows, product.rows), dtype) for product in products]

    def kernel(point, *refs):
        x_refs, product_refs, shared_ref = jax.tree.unflatten(structure, refs[: len(inputs)])
        if shared_ref is None:
            start = jnp.minimum(point[1] * batch, rows - batch)
            out_rows = [start + i for i in range(batch)]
        else:
            out_rows = [shared_ref[point[1], i] for i in range(batch)]
        each = rows // x.rows
        x_rows = _Rows(x_refs, [row // each if each > 1 else row for row in out_rows])
        out_refs, shares = refs[len(inputs) :], triton.shares(point[0], programs)
        for product, out_ref, (program, wanted) in zip(product_refs, out_refs, shares):
            run = functools.partial(_run, product, out_ref, x_rows, out_rows, program, tile, target)
            if shared_ref is not None:
                wanted.append(out_rows[0] >= 0)
            triton.when_all(wanted, run)

    run = triton.call(
        kernel,
        outputs,
        grid=(sum(programs), count_of_tiles),
        target=target,
        warps=tile.warps,
        name=f"multiply_{x.mode}",
    )
    return list(run(*inputs))


def _run(product, out_ref, x_rows, rows, program, tile, target):
    """Compute the outputs of a program in some rows. `product` and `x_rows` hold refs.

    The last block may overlap its neighbour. Both then write the same numbers.
    """
    count = tile.outputs(product.rows)
    run = functools.partial(_block, product, out_ref, x_rows, rows, count, tile, target)
    if tile.blocks == 1:
        run(program * count, None)
        return
    x = None
    if tile.step(x_rows.x.groups) >= x_rows.x.groups:
        at = _Columns(0, tile.step(x_rows.x.groups), x_rows.x.groups)
        x = [x_rows.read(i, at) for i in range(x_rows.batch)]
    first = program * tile.blocks
    jax.lax.fori_loop(first, first + tile.blocks, lambda j, _: run(j * count, x), None)


def _block(product, out_ref, x_rows, rows, count, tile, target, start, of_x):
    """Compute `count` outputs from `start` on."""
    start = jnp.minimum(start, product.rows - count)
    at = start + jnp.arange(count, dtype=jnp.int32)
    expert = () if product.experts is None else (product.experts[rows[0]],)
    # Operands of the epilogue are loaded here, so that their latency overlaps with the weight's.
    scales_and_biases = [
        (
            None if scale is None else scale[expert[0] if expert else 0].astype(jnp.float32),
            None if bias is None else triton.load(bias, (*expert, at)).astype(jnp.float32),
        )
        for _, scale, bias in product.of_each_weight
    ]
    residuals = [
        None
        if product.residual is None
        else triton.load(product.residual, (row, at)).astype(jnp.float32)
        for row in rows
    ]
    squares = [x_rows.squares(i) for i in range(x_rows.batch)]
    sums = [
        _product(x_rows, of_x, weight, expert, start, count, tile, target)
        for weight in product.weights
    ]
    for row, of_weights, squares_G, residual in zip(rows, zip(*sums), squares, residuals):
        if squares_G is not None:
            factor = x_rows.norm_factor(squares_G)
            of_weights = [y * factor for y in of_weights]
        y = finished(of_weights, scales_and_biases, product.activation)
        y = y if residual is None else y + residual
        triton.store(out_ref, (row, at), y.astype(out_ref.dtype))


def _product(x_rows, x_of_row, weight, expert, start, count, tile, target):
    """Multiply each row of activations with `count` rows of a weight -> float32 [count] each."""
    x = x_rows.x
    width = tile.step(x.groups)
    steps = pl.cdiv(x.groups, width)
    # Converting the four factors of a group to floats costs more than multiplying them as integers.
    # Several rows share the conversion. AMD's GPUs multiply integers at a quarter of the speed.
    together = (
        target.platform != "rocm"
        and x.mode != "float"
        and x_rows.batch == 1
        and weight.packing.scale == "nibbles"
    )

    def step(j, totals):
        at = _Columns(j * width, width, x.groups)
        of_weight = [_read_weight(weight, (*expert, start + r), at) for r in range(count)]
        of_x = x_of_row or [x_rows.read(i, at) for i in range(x_rows.batch)]
        zero = (
            _zero_after(of_weight, of_x, target) if tile.load_first else jnp.zeros(width, jnp.int32)
        )
        return tuple(
            tuple(
                row.multiply_add(groups, total, zero, together, target)
                for total, groups in zip(of_row, of_weight)
            )
            for of_row, row in zip(totals, of_x)
        )

    totals = ((jnp.zeros(width, jnp.float32),) * count,) * x_rows.batch
    totals = step(0, totals) if steps == 1 else jax.lax.fori_loop(0, steps, step, totals)
    return [_stacked([total.sum() for total in of_row]) for of_row in totals]


def _zero_after(of_weight, of_x, target):
    """Apply `triton.zero_after` to the loads of the weights and of integer activations."""
    loaded = [
        array for groups in of_weight for array in (*groups.words, *jax.tree.leaves(groups.scales))
    ]
    loaded += [
        array
        for groups in of_x
        if not groups.of_floats
        for array in (*itertools.chain(*groups.words), *groups.sums, groups.scale)
    ]
    return triton.zero_after(loaded, of_weight[0].words[0].shape, target)


def _stacked(numbers):
    """Stack scalars into one array."""
    n = jnp.arange(len(numbers), dtype=jnp.int32)
    stacked = jnp.broadcast_to(numbers[0], n.shape)
    for i, number in enumerate(numbers[1:], 1):
        stacked = jnp.where(n == i, number, stacked)
    return stacked


class _Columns:
    """The indices of `width` groups from `first` on; those from `groups` on are masked."""

    def __init__(self, first, width, groups):
        self.numbers = first + jnp.arange(width, dtype=jnp.int32)
        self.mask = self.numbers < groups if groups % width else None

    def load(self, ref, *index, span=1, hint=None):
        """Load the entries [W] of a row; `span` groups share an entry."""
        numbers = self.numbers // span if span > 1 else self.numbers
        return triton.load(ref, (*index, numbers), mask=self.mask, hint=hint)


def _read_weight(weight: Weight, row: tuple, at: _Columns) -> WeightGroups:
    """Load groups of a row of a weight, which holds refs; row: (index,) or (expert, index)."""
    packing = weight.packing

    def get(half, name):
        if name == "d":
            return at.load(weight.planes[name], *row, span=packing.span, hint="once")
        return at.load(weight.planes[name], *row, half, hint="once")

    words = [at.load(weight.planes["codes"], *row, i, hint="once") for i in range(packing.bits)]
    scales = [
        scale_and_minimum(packing, functools.partial(get, half)) for half in range(packing.halves)
    ]
    return WeightGroups(packing, words, scales)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Some rows of x, by their indices; x holds refs."""

    x: Activations
    numbers: list[jax.Array]

    @property
    def batch(self) -> int:
        """The number of rows."""
        return len(self.numbers)

    def squares(self, i):
        """Load the sums of squares of row i, zero-padded; return None without a norm."""
        if self.x.squares is None:
            return None
        g = jnp.arange(pl.next_power_of_2(self.x.groups), dtype=jnp.int32)
        return triton.load(self.x.squares, (self.numbers[i], g), mask=g < self.x.groups)

    def norm_factor(self, squares):
        """Compute 1 / sqrt(mean square + epsilon) of a row."""
        return jax.lax.rsqrt(
            squares.sum() / np.float32(self.x.groups * GROUP) + np.float32(self.x.epsilon)
        )

    def read(self, i, at: _Columns) -> ActivationGroups:
        """Load groups of row i."""
        row, count = self.numbers[i], GROUP if self.x.mode == "float" else POSITIONS
        words = [
            [at.load(self.x.words, row, part, p, hint="again") for p in range(count)]
            for part in range(self.x.words.shape[1])
        ]
        sums = [at.load(self.x.sums, row, half, hint="again") for half in range(2)]
        scale = at.load(self.x.scale, row, hint="again")
        return ActivationGroups(words, scale, sums, self.x.in_turn)
