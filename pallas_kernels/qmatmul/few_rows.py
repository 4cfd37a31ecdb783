"""Products of a few rows of activations with packed weights: decoding, and small batches.

The time of such a product is that of reading the weight, so a program reads some rows of it once, word by word, and multiplies what is
in registers: in the integer modes with 4-way dot products of bytes, which are exact, then by the scales of both sides. Several
products of one input are one launch; what follows a product (bias, SwiGLU, residual sum) is done before it is written.

It loses to the matrix units where the rows are many: each row of activations costs as much arithmetic as the first.
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
from pallas_kernels.packing import GROUP, POSITIONS, Packing, position_words, scale_and_minimum
from pallas_kernels.qmatmul import blocks
from pallas_kernels.qmatmul.activations import Activations
from pallas_kernels.targets import Target

#: The bits of 2^23 as float32: with an integer below 2^23 in the low bits it is that integer more.
MAGIC = np.uint32(0x4B000000)


@dataclasses.dataclass(frozen=True)
class Job:
    """One output of a launch, [M, rows]: the product with a weight, or silu(product with the first) * product with the second."""

    packings: tuple[Packing, ...]
    rows: int
    has_bias: bool = False
    has_residual: bool = False


def multiply(x: Activations, jobs: list[Job], planes: list[list[dict]], biases: list, residuals: list, dtype, target: Target, tile=None):
    """-> one array [M, rows] in `dtype` for each job.

    planes: for each job, those of its weights, [rows, ..., G]. biases: [rows] or None (for jobs of one weight). residuals: [M, rows] or
    None. tile: `blocks.Tile`, default that of the target.
    """
    tile = tile or blocks.few_rows(x.rows, x.groups, jobs, target)
    names = [[sorted(weight) for weight in weights] for weights in planes]
    rows = [min(tile.rows, 1 << (job.rows.bit_length() - 1)) for job in jobs]
    tiles = [pl.cdiv(job.rows, count) for job, count in zip(jobs, rows)]
    batch = min(tile.batch, x.rows)

    def kernel(*refs):
        refs, program = list(refs), pl.program_id(0)
        take = lambda: refs.pop(0)
        acts = _Rows(take(), take(), take(), x.mode, x.groups, jnp.minimum(pl.program_id(1) * batch, x.rows - batch), batch)
        weights = [[{name: take() for name in of_weight} for of_weight in of_job] for of_job in names]
        bias_refs = [take() if job.has_bias else None for job in jobs]
        residual_refs = [take() if job.has_residual else None for job in jobs]
        first = 0
        for job, weight, bias, residual, out, count, programs in zip(jobs, weights, bias_refs, residual_refs, refs, rows, tiles):
            run = lambda: _run(job, weight, bias, residual, out, acts, program - first, count, tile, target)
            if len(jobs) == 1:
                run()
            else:
                pl.when((program >= first) & (program < first + programs))(run)
            first += programs

    operands = [x.words, x.scale, x.sums]
    operands += [weight[name] for of_job, weights in zip(names, planes) for of_weight, weight in zip(of_job, weights) for name in of_weight]
    operands += [a for a in (*biases, *residuals) if a is not None]
    return triton.call(
        kernel, [jax.ShapeDtypeStruct((x.rows, job.rows), dtype) for job in jobs], grid=(sum(tiles), pl.cdiv(x.rows, batch)),
        target=target, warps=tile.warps, name=f"multiply_{x.mode}",
    )(*operands)  # fmt: skip


def _run(job, weights, bias_ref, residual_ref, out_ref, acts, tile_index, count, tile, target):
    """Compute `count` outputs of a job. The last program overlaps its neighbour: both write the same numbers."""
    start = jnp.minimum(tile_index * count, job.rows - count)
    sums = [_product(acts, weight, packing, start, count, tile, target) for weight, packing in zip(weights, job.packings)]
    for i, r in itertools.product(range(acts.batch), range(count)):
        y = sums[0][i][r] if len(sums) == 1 else _silu(sums[0][i][r]) * sums[1][i][r]
        if bias_ref is not None:
            y = y + bias_ref[start + r].astype(jnp.float32)
        if residual_ref is not None:
            y = y + residual_ref[acts.first + i, start + r].astype(jnp.float32)
        out_ref[acts.first + i, start + r] = y.astype(out_ref.dtype)


def _silu(x):
    return x / (1 + jnp.exp(-x))


def _product(acts, refs, packing, start, count, tile, target):
    """For each row of activations and each of `count` rows of a weight from `start` on: a float32 number."""
    width = min(tile.groups, pl.next_power_of_2(acts.groups))
    weight, steps = _Weight(refs, packing, acts.groups), pl.cdiv(acts.groups, width)

    def step(j, totals):
        at = _Columns(j * width, width, acts.groups)
        parts = [weight.read(start + r, at) for r in range(count)]
        rows = [acts.read(i, at) for i in range(acts.batch)]
        return tuple(tuple(total + row.times(part, target) for total, part in zip(of_row, parts)) for of_row, row in zip(totals, rows))

    totals = ((jnp.zeros(width, jnp.float32),) * count,) * acts.batch
    totals = step(0, totals) if steps == 1 else jax.lax.fori_loop(0, steps, step, totals)
    return [[total.sum() for total in of_row] for of_row in totals]


class _Columns:
    """`width` groups from `first` on; those from `groups` on are masked."""

    def __init__(self, first, width, groups):
        self.slice, self.numbers, self.mask = pl.ds(first, width), first + jnp.arange(width), None
        if groups % width:
            # From JAX 0.12 on, a slice that starts at a Python integer may not overhang, masked or not.
            self.slice, self.mask = pl.ds(jnp.int32(first), width), self.numbers < groups

    def load(self, ref, *index):
        return triton.load(ref, (*index, self.slice), mask=self.mask)

    def load_shared(self, ref, row, span):
        """Entries that `span` groups share."""
        return self.load(ref, row) if span == 1 else triton.load(ref, (row, self.numbers // span), mask=self.mask)


class _Part(NamedTuple):
    """Some groups of one row of a weight: words by position, and (scale, minimum) for each half or for all of a group."""

    packing: Packing
    words: list
    scales: list

    def positions(self, half: int) -> range:
        return range(POSITIONS) if self.packing.halves == 1 else range(4 * half, 4 * half + 4)


@dataclasses.dataclass(frozen=True)
class _Weight:
    refs: dict
    packing: Packing
    groups: int

    def read(self, row, at: _Columns) -> _Part:
        def get(half, name):
            if name == "d":
                return at.load_shared(self.refs[name], row, self.packing.span)
            return at.load(self.refs[name], row, half)

        words = [at.load(self.refs["codes"], row, i) for i in range(self.packing.bits)]
        scales = [scale_and_minimum(self.packing, functools.partial(get, half)) for half in range(self.packing.halves)]
        return _Part(self.packing, words, scales)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """`batch` rows of activations from `first` on, as refs."""

    words: object
    scale: object
    sums: object
    mode: str
    groups: int
    first: object
    batch: int

    def read(self, i, at: _Columns) -> "_Row":
        row, count = self.first + i, GROUP if self.mode == "float" else POSITIONS
        words = [[at.load(self.words, row, part, p) for p in range(count)] for part in range(self.words.shape[1])]
        sums = [at.load(self.sums, row, half) for half in range(2)]
        scale = None if self.mode == "float" else at.load(self.scale, row)
        return _Row(words, scale, sums)


class _Row(NamedTuple):
    """Some groups of one row of activations, in registers."""

    words: list
    scale: object
    sums: list

    def _sum(self, part, half):
        return self.sums[half] if part.packing.halves == 2 else self.sums[0] + self.sums[1]

    def times(self, part: _Part, target):
        """float32 [width]: the products of these groups with those of a weight."""
        dots = self._float_dots(part, target) if self.scale is None else self._integer_dots(part, target)
        total = None
        for half, (dot, (scale, minimum)) in enumerate(zip(dots, part.scales)):
            term = dot.astype(jnp.float32) * scale
            if minimum is not None:
                term = term + self._sum(part, half).astype(jnp.float32) * minimum
            total = term if total is None else total + term
        return total if self.scale is None else total * self.scale

    def _integer_dots(self, part, target):
        codes = [word.astype(jnp.int32) for word in _signed_words(part.words, part.packing, target)]
        for half in range(part.packing.halves):
            dot = None
            for words in self.words:
                bytes_dot = jnp.zeros(codes[0].shape, jnp.int32)
                for p in part.positions(half):
                    bytes_dot = triton.dot4(codes[p], words[p], bytes_dot, target)
                dot = bytes_dot if dot is None else (dot << 7) + bytes_dot
            yield dot - part.packing.offset * self._sum(part, half) if part.packing.offset else dot

    def _float_dots(self, part, target):
        words, offset = unsigned_words(part.words, part.packing, target)
        lifted = np.float32(2**23 + offset)
        for half in range(part.packing.halves):
            dot = None
            for p, byte in itertools.product(part.positions(half), range(4)):
                bits = ((words[p] >> np.uint32(8 * byte)) & np.uint32(255)) | MAGIC
                term = (jax.lax.bitcast_convert_type(bits, jnp.float32) - lifted) * self.words[0][4 * p + byte]
                dot = term if dot is None else dot + term
            yield dot


def _signed_words(words, packing, target):
    """Words of a group -> for each position, words of signed bytes; the packing's offset is not taken off."""
    if packing.table is None:
        return position_words(words, packing.bits)
    pairs = [triton.bytes_of_table(word, packing.table, target) for word in words]
    return [low for low, _ in pairs] + [high for _, high in pairs]


def unsigned_words(words, packing: Packing, target: Target):
    """Words of a group -> for each position, uint32 words of unsigned bytes; and what each byte is too large by."""
    words = _signed_words(words, packing, target)
    if packing.table is None and packing.bits < 8:
        return words, packing.offset
    return [word.astype(jnp.uint32) ^ np.uint32(0x80808080) for word in words], 128
