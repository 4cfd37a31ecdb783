"""Quantised activations, in groups of 32 consecutive inputs like the weights.

There are three modes, which differ in what a group consists of:

    "int16"  15-bit integers and a scale. An integer is two signed bytes, q = 128 * high + low. The
             error is at most 3e-5 of the largest number of the group
    "int8"   signed bytes and a scale, as in llama.cpp. The error is at most 4e-3 of the largest
    "float"  exact float32 numbers, divided by a scale that is a power of two

If an RMSNorm comes first, x is multiplied by the norm's scale here, but the product divides the row
by its root mean square. So activations carry the sum of squares of each group, and a group can be
quantised before the rest of its row is known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, power_of_two
from pallas_kernels.targets import Target

#: The largest integer of a mode.
LARGEST = {"int16": 127 * 128, "int8": 127}
MODES = ("int16", "int8", "float")
#: A factor of the numbers of mode "float". With it, products with codes are far from the smallest
#: floats, even if a code is used as a subnormal float (`triton.unit_of_bits`).
FLOATS_UNIT = 2.0**100
#: Groups that one program of one warp quantises.
GROUPS_PER_PROGRAM = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """Quantised activations: M rows of G groups.

    Attributes:
        words: int32 [M, 2, 8, G] of four bytes each, high bytes before low bytes; [M, 1, 8, G] in
            mode "int8". In mode "float": float32 [M, 1, 32, G], times FLOATS_UNIT.
        scale: float32 [M, G].
        sums: int32 [M, 2, G], the sums of the integers of each half of a group. In mode "float":
            float32, the sums of the numbers.
        squares: float32 [M, G], the sum of squares of each group before an RMSNorm's scale, or None
            without a norm. The product multiplies a row by 1 / sqrt(mean square + epsilon).
        mode: one of MODES.
        epsilon: the epsilon of the norm.
        in_turn: whether bytes are in the order that `in_turn` means in `codes.signed_bytes`.
    """

    words: jax.Array
    scale: jax.Array
    sums: jax.Array
    squares: jax.Array | None
    mode: str = dataclasses.field(metadata=dict(static=True))
    epsilon: float = dataclasses.field(default=0.0, metadata=dict(static=True))
    in_turn: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def rows(self) -> int:
        """M, the number of rows."""
        return self.words.shape[0]

    @property
    def groups(self) -> int:
        """G, the number of groups per row."""
        return self.words.shape[-1]


def shapes(rows: int, groups: int, mode: str, normed: bool) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of words, scale, sums and, if `normed`, squares."""
    number = jnp.float32 if mode == "float" else jnp.int32
    words = {"int16": (2, POSITIONS), "int8": (1, POSITIONS), "float": (1, GROUP)}[mode]
    of = jax.ShapeDtypeStruct
    arrays = [
        of((rows, *words, groups), number),
        of((rows, groups), jnp.float32),
        of((rows, 2, groups), number),
    ]
    return arrays + [of((rows, groups), jnp.float32)] * normed


def of_arrays(arrays, mode: str, epsilon: float = 0.0, in_turn: bool = False) -> Activations:
    """Make Activations from arrays in the order of `shapes`."""
    return Activations(*arrays, *[None] * (4 - len(arrays)), mode, epsilon, in_turn)


def quantize(
    x_MK, mode: str, *, norm=None, epsilon: float = 0.0, in_turn: bool = False, target: Target
) -> Activations:
    """Quantise x [M, K] of any float dtype, K a multiple of 32.

    Args:
        x_MK: the numbers.
        mode: one of MODES.
        norm: the scale [K] of an RMSNorm to apply first, or None.
        epsilon: the epsilon of that norm.
        in_turn: whether to use the order of bytes that `in_turn` means in `codes.signed_bytes`.
        target: the compilation target.
    """
    in_turn = in_turn and mode != "float"
    M, K = x_MK.shape
    groups = K // GROUP
    tile = min(GROUPS_PER_PROGRAM, pl.next_power_of_2(groups))

    def kernel(point, x_ref, *refs):
        norm_ref, outputs = (None, refs) if norm is None else (refs[0], refs[1:])
        m, g = point[0], point[1] * tile + jnp.arange(tile)
        inputs, mask = jnp.arange(GROUP)[None], (g < groups)[:, None]
        x = triton.load(x_ref, (m, g[:, None], inputs), mask=mask).astype(jnp.float32)
        squares = (x * x).sum(axis=1)
        if norm is not None:
            x = x * triton.load(norm_ref, (g[:, None], inputs), mask=mask).astype(jnp.float32)
        store(outputs, m, g, x, mode, in_turn, mask=g < groups)
        for ref in outputs[3:]:
            triton.store(ref, (m, g), squares, mask=g < groups)

    run = triton.call(
        kernel,
        shapes(M, groups, mode, norm is not None),
        grid=(M, pl.cdiv(groups, tile)),
        target=target,
        warps=1,
        name=f"quantize_{mode}",
    )

    def by_group(a):
        return a.reshape(*a.shape[:-1], groups, GROUP)

    return of_arrays(
        run(by_group(x_MK), *([] if norm is None else [by_group(norm)])), mode, epsilon, in_turn
    )


def store(refs, row, g, x, mode: str, in_turn: bool = False, mask=None):
    """In a kernel: quantise x and write it as some groups of a row.

    Args:
        refs: the refs of words, scale and sums.
        row: the index of the row.
        g: the indices of the groups, int32 [n].
        x: float32 [n, 32].
        mode: one of MODES.
        in_turn: as for `quantize`.
        mask: bool [n], which groups to write, or None for all.
    """
    words_ref, scale_ref, sums_ref = refs[:3]
    words, scale, sums = _quantized(x, mode, in_turn)

    def wide(index):
        return None if mask is None else mask[:, None] & (index >= 0)

    for i, part in enumerate(words):
        position = jnp.arange(part.shape[1])[None]
        if in_turn:
            position = position % 2 * 4 + position // 2
        triton.store(words_ref, (row, i, position, g[:, None]), part, mask=wide(position))
    triton.store(scale_ref, (row, g), scale, mask=mask)
    half = jnp.arange(2)[None]
    triton.store(sums_ref, (row, half, g[:, None]), sums, mask=wide(half))


def quantize_reference(x_MK, mode: str, *, norm=None, epsilon: float = 0.0) -> Activations:
    """Compute `quantize` in plain jnp, without `in_turn`."""
    x = x_MK.astype(jnp.float32)
    (M, K), squares = x.shape, (x * x).reshape(x.shape[0], -1, GROUP).sum(axis=2)
    if norm is not None:
        x = x * norm.astype(jnp.float32)[None]
    words, scale, sums = _quantized(x.reshape(-1, GROUP), mode)

    def by_row(a):
        return jnp.moveaxis(a.reshape(M, K // GROUP, -1), 1, 2)

    arrays = jnp.stack([by_row(part) for part in words], axis=1), scale.reshape(M, -1), by_row(sums)
    return of_arrays(arrays if norm is None else (*arrays, squares), mode, epsilon)


def _quantized(x, mode, in_turn=False):
    """Quantise float32 [groups, 32].

    Returns:
        The words [groups, 8 or 32] of each part, the scales [groups] and the sums [groups, 2]. With
        `in_turn`, the words are for positions 0, 4, 1, 5 and so on of `Activations`.
    """

    def halves(a):
        return a.reshape(-1, 2, GROUP // 2).sum(axis=2)

    largest = jnp.abs(x).max(axis=1)
    if mode == "float":
        inverse, scale = _powers_of_two(largest)
        x = x * inverse[:, None]
        return [x * np.float32(FLOATS_UNIT)], scale, halves(x)
    inverse, scale = steps(largest, mode)
    q = to_integers(x, inverse[:, None])
    return [_as_words(part, in_turn) for part in as_bytes(q, mode)], scale, halves(q)


def steps(largest, mode: str):
    """Return the factors that scale numbers to integers, and their inverses.

    largest: the largest absolute number of each group, float32.
    """
    top = np.float32(LARGEST[mode])
    inverse = jnp.where(
        largest > 0, top / jnp.where(largest > 0, largest, np.float32(1)), np.float32(0)
    )
    return inverse, largest / top


def _powers_of_two(largest):
    """Round float32 numbers down to powers of two; return their inverses, and the powers.

    Both are normal floats, 2^-126 to 2^126.
    """
    biased = jnp.clip(jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23, 1, 253)
    return power_of_two(255 - biased), power_of_two(biased + 1)


def to_integers(x, inverse):
    """Scale float32 numbers by `inverse` and round them to int32."""
    return jnp.floor(x * inverse + np.float32(0.5)).astype(jnp.int32)


def as_bytes(q, mode: str) -> list:
    """Split integers into signed bytes, each as int32: [high, low], or [q] in mode "int8"."""
    if mode == "int8":
        return [q]
    high = (q + 64) >> 7
    return [high, q - (high << 7)]


def _as_words(q, in_turn):
    """Pack signed bytes, int32 [groups, 32], into int32 words [groups, 8]."""
    if not in_turn:
        shift = 8 * jax.lax.broadcasted_iota(jnp.int32, (1, 1, 4), 2)
        return ((q.reshape(-1, POSITIONS, 4) & 255) << shift).sum(axis=2)
    q = q.reshape(-1, 2, POSITIONS // 2, 2, 2)  # half, position of it, word, byte of that half
    shift = 8 * jax.lax.broadcasted_iota(
        jnp.int32, (1, 2, 1, 1, 2), 1
    ) + 16 * jax.lax.broadcasted_iota(jnp.int32, (1, 2, 1, 1, 2), 4)
    return ((q & 255) << shift).sum(axis=4).sum(axis=1).reshape(-1, POSITIONS)
