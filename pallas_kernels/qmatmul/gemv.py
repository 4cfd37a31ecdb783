"""Products of a few rows of activations with packed weights: decoding, and small batches.

The time of such a product is that of reading the weight, so a program reads some rows of it once,
word by word, and multiplies what is in registers: in the integer modes with 4-way dot products of
bytes, which are exact, then by the scales of both sides. Several products of one input are one
launch; what follows a product (bias, SwiGLU, residual sum) is done before it is written.

Arrays of a kernel are [W], of W groups of one row of a weight or of activations.

It loses to the matrix units where the rows are many: each row of activations costs as much
arithmetic as the first.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, Factors, Packing, scale_and_minimum
from pallas_kernels.qmatmul import blocks, codes
from pallas_kernels.qmatmul.activations import FLOATS_UNIT, Activations
from pallas_kernels.targets import Target


@dataclasses.dataclass(frozen=True)
class Job:
    """One output of a launch, [M, rows]: the product with a weight, or silu(product with the first)
    * product with the second.
    """

    packings: tuple[Packing, ...]
    rows: int


class Operands(NamedTuple):
    """Arrays of a job. planes: of each weight, [rows, ..., G]; bias: [rows]; residual: [M, rows].

    experts: int32 [P], for planes [E, rows, ..., G]: the one of each row of the output.
    """

    planes: list[dict]
    bias: object = None
    residual: object = None
    experts: object = None


def multiply(
    x: Activations,
    jobs: list[Job],
    operands: list[Operands],
    dtype,
    target: Target,
    tile=None,
    pairs: int | None = None,
) -> list[jax.Array]:
    """-> the output [M, rows] of each job, in `dtype`.

    Optional operands are None where the job has none. tile: `blocks.Tile`, default that of the
    target. pairs: P where the operands have experts, a multiple of M: rows of the outputs then, P /
    M for each row of x, which share no weight, so one at a time. ValueError: bytes of activations
    in turn, for weights whose are not.
    """
    if x.in_turn and not codes.come_in_turn(
        (packing for job in jobs for packing in job.packings), target
    ):
        raise ValueError(
            "bytes of activations are in turn, those of weights are not:"
            f" {[job.packings for job in jobs]}"
        )
    rows = pairs or x.rows
    tile = tile or blocks.gemv(1 if pairs else rows, x.groups, jobs, x.mode, target, pairs or 1)
    batch = 1 if pairs else min(tile.batch, rows)
    programs = [pl.cdiv(job.rows, _outputs_of_a_program(job, tile)) for job in jobs]
    inputs, structure = jax.tree.flatten([[x.words, x.scale, x.sums, x.squares], operands])
    outputs = [jax.ShapeDtypeStruct((rows, job.rows), dtype) for job in jobs]

    def kernel(point, *refs):
        act_refs, job_refs = jax.tree.unflatten(structure, refs[: len(inputs)])
        row = jnp.minimum(point[1] * batch, rows - batch)
        acts = _Rows(
            *act_refs,
            x.mode,
            x.groups,
            x.epsilon,
            x.in_turn,
            row // (rows // x.rows) if rows > x.rows else row,
            batch,
        )
        program, first = point[0], 0
        for job, of_job, out_ref, count in zip(jobs, job_refs, refs[len(inputs) :], programs):
            run = functools.partial(
                _run, job, of_job, out_ref, acts, row, program - first, tile, target
            )
            if len(jobs) == 1:
                run()
            else:
                pl.when((program >= first) & (program < first + count))(run)
            first += count

    run = triton.call(
        kernel,
        outputs,
        grid=(sum(programs), pl.cdiv(rows, batch)),
        target=target,
        warps=tile.warps,
        name=f"multiply_{x.mode}",
    )
    return list(run(*inputs))


def _outputs_of_a_program(job: Job, tile) -> int:
    """As the tile says, less where the job has fewer."""
    return min(tile.rows, 1 << (job.rows.bit_length() - 1))


def _run(job, refs, out_ref, acts, first_row, tile_index, tile, target):
    """Compute the outputs of a program.

    The last program overlaps its neighbour: both write the same numbers.
    """
    count = _outputs_of_a_program(job, tile)
    start = jnp.minimum(tile_index * count, job.rows - count)
    at = start + jnp.arange(count, dtype=jnp.int32)
    rows = [first_row + i for i in range(acts.batch)]
    expert = () if refs.experts is None else (refs.experts[first_row],)
    # What the end needs is read now: its wait would come on top of that for the weight.
    bias = None if refs.bias is None else triton.load(refs.bias, (at,)).astype(jnp.float32)
    residuals = [
        None if refs.residual is None else triton.load(refs.residual, (row, at)).astype(jnp.float32)
        for row in rows
    ]
    squares = [acts.squares_of(i) for i in range(acts.batch)]
    weights = [
        _Weight(planes, packing, expert) for planes, packing in zip(refs.planes, job.packings)
    ]
    sums = [_product(acts, weight, start, count, tile, target) for weight in weights]
    for row, of_weights, squares_G, residual in zip(rows, zip(*sums), squares, residuals):
        if squares_G is not None:
            factor = acts.factor(squares_G)
            of_weights = [y * factor for y in of_weights]
        y = of_weights[0] if len(of_weights) == 1 else _silu(of_weights[0]) * of_weights[1]
        for addend in (bias, residual):
            y = y if addend is None else y + addend
        triton.store(out_ref, (row, at), y.astype(out_ref.dtype))


def _silu(x):
    return x / (1 + jnp.exp(-x))


def _product(acts, weight, start, count, tile, target):
    """For each row of activations: float32 [count], the products with `count` rows of a weight."""
    width = min(tile.groups, pl.next_power_of_2(acts.groups))
    steps = pl.cdiv(acts.groups, width)
    # Four factors of a group are more to convert than to multiply as integers; for several rows
    # they are converted once. AMD's GPUs multiply integers at a quarter of the speed.
    together = (
        target.platform != "rocm"
        and acts.mode != "float"
        and acts.batch == 1
        and weight.packing.scale == "nibbles"
    )

    def step(j, totals):
        at = _Columns(j * width, width, acts.groups)
        parts = [weight.read(start + r, at) for r in range(count)]
        rows = [acts.read(i, at) for i in range(acts.batch)]
        zero = _zero_after(parts, rows, target) if tile.load_first else jnp.zeros(width, jnp.int32)

        def add(row, total, part):
            return row.add(total, part, zero, together, target)

        return tuple(
            tuple(add(row, total, part) for total, part in zip(of_row, parts))
            for of_row, row in zip(totals, rows)
        )

    totals = ((jnp.zeros(width, jnp.float32),) * count,) * acts.batch
    totals = step(0, totals) if steps == 1 else jax.lax.fori_loop(0, steps, step, totals)
    return [_together([total.sum() for total in of_row]) for of_row in totals]


def _zero_after(parts, rows, target):
    """`triton.zero_after` what was read of the weights and, where they are few, of the activations."""
    loaded = [array for part in parts for array in (*part.words, *jax.tree.leaves(part.scales))]
    loaded += [
        array
        for row in rows
        if not row.of_floats
        for array in (*itertools.chain(*row.words), *row.sums, row.scale)
    ]
    return triton.zero_after(loaded, parts[0].words[0].shape, target)


def _together(numbers):
    """Scalars as one array."""
    n = jnp.arange(len(numbers), dtype=jnp.int32)
    together = jnp.broadcast_to(numbers[0], n.shape)
    for i, number in enumerate(numbers[1:], 1):
        together = jnp.where(n == i, number, together)
    return together


class _Columns:
    """`width` groups from `first` on; those from `groups` on are masked."""

    def __init__(self, first, width, groups):
        self.numbers = first + jnp.arange(width, dtype=jnp.int32)
        self.mask = self.numbers < groups if groups % width else None

    def load(self, ref, *index, span=1, hint=None):
        """Entries [W] of a row; those that `span` groups share."""
        return triton.load(
            ref,
            (*index, self.numbers // span if span > 1 else self.numbers),
            mask=self.mask,
            hint=hint,
        )


class _Part(NamedTuple):
    """Some groups of a row of a weight, [W]: words by position, and for each half or for all of a
    group its scale and its minimum, or None.
    """

    packing: Packing
    words: list
    scales: list[tuple[Factors, Factors | None]]

    def positions(self, half: int) -> range:
        return range(POSITIONS) if self.packing.halves == 1 else range(4 * half, 4 * half + 4)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """Refs of a matrix, or of a stack and (the number of one in it,)."""

    refs: dict
    packing: Packing
    expert: tuple = ()

    def read(self, row, at: _Columns) -> _Part:
        def get(half, name):
            if name == "d":
                return at.load(
                    self.refs[name], *self.expert, row, span=self.packing.span, hint="once"
                )
            return at.load(self.refs[name], *self.expert, row, half, hint="once")

        words = [
            at.load(self.refs["codes"], *self.expert, row, i, hint="once")
            for i in range(self.packing.bits)
        ]
        scales = [
            scale_and_minimum(self.packing, functools.partial(get, half))
            for half in range(self.packing.halves)
        ]
        return _Part(self.packing, words, scales)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """`batch` rows of activations from `first` on, as refs."""

    words: object
    scale: object
    sums: object
    squares: object
    mode: str
    groups: int
    epsilon: float
    in_turn: bool
    first: object
    batch: int

    def squares_of(self, i):
        """Of row i, by group, padded with zeros; None where no norm comes first."""
        if self.squares is None:
            return None
        g = jnp.arange(pl.next_power_of_2(self.groups), dtype=jnp.int32)
        return triton.load(self.squares, (self.first + i, g), mask=g < self.groups)

    def factor(self, squares):
        """1 / root mean square."""
        return jax.lax.rsqrt(
            squares.sum() / np.float32(self.groups * GROUP) + np.float32(self.epsilon)
        )

    def read(self, i, at: _Columns) -> "_Row":
        row, count = self.first + i, GROUP if self.mode == "float" else POSITIONS
        words = [
            [at.load(self.words, row, part, p, hint="again") for p in range(count)]
            for part in range(self.words.shape[1])
        ]
        sums = [at.load(self.sums, row, half, hint="again") for half in range(2)]
        return _Row(words, at.load(self.scale, row, hint="again"), sums, self.in_turn)


class _Row(NamedTuple):
    """Some groups of one row of activations, [W], in registers."""

    words: list
    scale: object
    sums: list
    in_turn: bool

    @property
    def of_floats(self) -> bool:
        return len(self.words[0]) == GROUP

    def _sum(self, part, half):
        return self.sums[half] if part.packing.halves == 2 else self.sums[0] + self.sums[1]

    def add(self, total, part: _Part, zero, together, target):
        """float32 [W]: `total` and the products of these groups with those of a weight.

        zero: int32 [W], what they begin with. together: as for `_scaled`.
        """
        dots = (self._float_dots if self.of_floats else self._integer_dots)(part, zero, target)
        scales, minima = zip(*part.scales)
        of_groups = _scaled(list(dots), scales, None, together, target)
        if minima[0] is not None:
            of_groups = _scaled(
                [self._sum(part, half) for half in range(len(minima))],
                minima,
                of_groups,
                together,
                target,
            )
        return triton.multiply_add(of_groups, self.scale, total, target)

    def _integer_dots(self, part, zero, target):
        of_weight = [
            word.astype(jnp.int32)
            for word in codes.signed_bytes(part.words, part.packing, target, self.in_turn)
        ]
        for half in range(part.packing.halves):
            dot = None
            for i, words in enumerate(self.words):
                of_bytes = zero
                if part.packing.offset and i == len(self.words) - 1:
                    of_bytes = zero - part.packing.offset * self._sum(part, half)
                for p in part.positions(half):
                    of_bytes = triton.dot4(of_weight[p], words[p], of_bytes, target)
                dot = of_bytes if dot is None else (dot << 7) + of_bytes
            yield dot

    def _float_dots(self, part, zero, target):
        numbers, offset = codes.unsigned(part.words, part.packing, target)
        unit, zero = (
            triton.unit_of_bits(target) * FLOATS_UNIT,
            jax.lax.bitcast_convert_type(zero, jnp.float32),
        )
        for half in range(part.packing.halves):
            dots = {}
            if offset:
                dots[0] = triton.multiply_add(
                    self._sum(part, half), np.float32(-offset * unit), zero, target
                )
            for element in range(4 * part.positions(half).start, 4 * part.positions(half).stop):
                bits, place = numbers[element]
                dots[place] = triton.multiply_bits_add(
                    bits, self.words[0][element], dots.get(place, zero), target
                )
            total = None
            for place, dot in dots.items():
                factor = np.float32(2.0**-place / unit)
                total = (
                    dot * factor
                    if total is None
                    else triton.multiply_add(dot, factor, total, target)
                )
            yield total


def _scaled(numbers, scales: list[Factors], addend, together: bool, target):
    """float32 [W]: the sum over halves of int32 or float32 numbers times their scale, plus the
    addend, if there is one.

    together: halves of integers have one unit, and their multiples of it are below 16, so that the
    sum of both fits in 32 bits.
    """
    if together:
        numbers = [sum(number * scale.multiple for number, scale in zip(numbers, scales))]
        scales = [Factors(scales[0].unit)]
    for number, scale in zip(numbers, scales):
        number, factor = number.astype(jnp.float32), scale.product()
        addend = (
            number * factor
            if addend is None
            else triton.multiply_add(number, factor, addend, target)
        )
    return addend
