"""Activations as the products take them: 32 consecutive inputs are a group, as in the weights.

Three modes, by what a group becomes:

    "int16"  15-bit integers times a scale, each as two signed bytes, q = 128 * high + low: exact to 3e-5 of the largest of a group
    "int8"   signed bytes times a scale, as llama.cpp has them: exact to 4e-3 of the largest
    "float"  float32

Quantising comes with the RMSNorm before it where there is one: both read x once.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS
from pallas_kernels.targets import Target

#: The largest integer of a mode.
LARGEST = {"int16": 127 * 128, "int8": 127}
MODES = ("int16", "int8", "float")
#: Groups that one program quantises.
GROUPS_PER_PROGRAM = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """M rows of G groups.

    words: int32 [M, 2 or 1, 8, G], four bytes each, high bytes before low ones; float32 [M, 1, 32, G] in mode "float".
    scale: float32 [M, G], ones in mode "float". sums: int32 (float32) [M, 2, G], of the integers (numbers) of each half of a group.
    """

    words: jax.Array
    scale: jax.Array
    sums: jax.Array
    mode: str = dataclasses.field(metadata=dict(static=True))

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def groups(self) -> int:
        return self.words.shape[-1]


def _shapes(rows, groups, mode):
    """Of words, scale, sums."""
    number = jnp.float32 if mode == "float" else jnp.int32
    words = {"int16": (2, POSITIONS), "int8": (1, POSITIONS), "float": (1, GROUP)}[mode]
    of = jax.ShapeDtypeStruct
    return of((rows, *words, groups), number), of((rows, groups), jnp.float32), of((rows, 2, groups), number)


def quantize(x_MK, mode: str, *, norm=None, epsilon: float = 0.0, target: Target) -> Activations:
    """x [M, K], K a multiple of 32, any float dtype -> Activations. norm: the scale [K] of an RMSNorm that comes first, or None."""
    M, K = x_MK.shape
    groups = K // GROUP
    tile = min(GROUPS_PER_PROGRAM, pl.next_power_of_2(groups))

    def kernel(x_ref, *refs):
        norm_ref, (words_ref, scale_ref, sums_ref) = (refs[0] if norm is not None else None), refs[-3:]
        m, g = pl.program_id(0), pl.program_id(1) * tile + jnp.arange(tile)
        inputs = jnp.arange(GROUP)[None]
        x = triton.load(x_ref, (m, g[:, None], inputs), mask=_below(g, groups)).astype(jnp.float32)
        if norm is not None:
            scale = triton.load(norm_ref, (g[:, None], inputs), mask=_below(g, groups)).astype(jnp.float32)
            x = x * jax.lax.rsqrt(_mean_square(x_ref, m, groups) + np.float32(epsilon)) * scale
        words, scale, sums = _quantized(x, mode)
        for i, part in enumerate(words):
            position = jnp.arange(part.shape[1])[None]
            triton.store(words_ref, (m, i, position, g[:, None]), part, mask=_below(g, groups) & (position >= 0))
        triton.store(scale_ref, (m, g), scale, mask=g < groups)
        half = jnp.arange(2)[None]
        triton.store(sums_ref, (m, half, g[:, None]), sums, mask=_below(g, groups) & (half >= 0))

    run = triton.call(
        kernel, _shapes(M, groups, mode), grid=(M, pl.cdiv(groups, tile)), target=target, warps=4, name=f"quantize_{mode}",
    )  # fmt: skip
    by_group = lambda a: a.reshape(*a.shape[:-1], groups, GROUP)
    return Activations(*run(by_group(x_MK), *([] if norm is None else [by_group(norm)])), mode)


def quantize_reference(x_MK, mode: str, *, norm=None, epsilon: float = 0.0) -> Activations:
    """`quantize` in plain jnp."""
    x = x_MK.astype(jnp.float32)
    if norm is not None:
        x = x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * norm.astype(jnp.float32)[None]
    M, K = x.shape
    words, scale, sums = _quantized(x.reshape(-1, GROUP), mode)
    by_row = lambda a: jnp.moveaxis(a.reshape(M, K // GROUP, -1), 1, 2)
    return Activations(jnp.stack([by_row(part) for part in words], axis=1), scale.reshape(M, -1), by_row(sums), mode)


def _below(g, groups):
    """Mask of rows [tile, 1]."""
    return (g < groups)[:, None]


def _mean_square(x_ref, m, groups):
    """Of the whole row m: every program computes it, which is quicker than waiting for one that does."""
    g = jnp.arange(pl.next_power_of_2(groups))
    x = triton.load(x_ref, (m, g[:, None], jnp.arange(GROUP)[None]), mask=_below(g, groups)).astype(jnp.float32)
    return (x * x).sum() / np.float32(groups * GROUP)


def _quantized(x, mode):
    """float32 [groups, 32] -> (words [groups, 8 or 32] of each part, scale [groups], sums [groups, 2])."""
    halves = lambda a: a.reshape(-1, 2, GROUP // 2).sum(axis=2)
    if mode == "float":
        return [x], jnp.ones(x.shape[0], jnp.float32), halves(x)
    largest, top = jnp.abs(x).max(axis=1), np.float32(LARGEST[mode])
    inverse = jnp.where(largest > 0, top / jnp.where(largest > 0, largest, np.float32(1)), np.float32(0))
    q = jnp.floor(x * inverse[:, None] + np.float32(0.5)).astype(jnp.int32)
    if mode == "int8":
        return [_as_words(q)], largest / top, halves(q)
    high = (q + 64) >> 7
    return [_as_words(high), _as_words(q - (high << 7))], largest / top, halves(q)


def _as_words(q):
    """Signed bytes as int32 [groups, 32] -> int32 words [groups, 8]."""
    shift = 8 * jax.lax.broadcasted_iota(jnp.int32, (1, 1, 4), 2)
    return ((q.reshape(-1, POSITIONS, 4) & 255) << shift).sum(axis=2)
