"""Activations as the products take them: 32 consecutive inputs are a group, as in the weights.

Three modes, by what a group becomes:

    "int16"  15-bit integers times a scale, each as two signed bytes, q = 128 * high + low: exact to
             3e-5 of the largest of a group
    "int8"   signed bytes times a scale, as llama.cpp has them: exact to 4e-3 of the largest
    "float"  float32, exact: of one to two times a scale that is a power of two

Where an RMSNorm comes first, x is multiplied by its scale here; that a row is divided by its root
mean square can wait until the product is there. So activations carry the sums of squares of their
groups, and nothing has to have seen all of a row before it is quantised.
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
#: What the numbers of mode "float" are times their scale: products with bytes are far from the
#: smallest floats then, whatever a byte's unit.
FLOATS_UNIT = 2.0**100
#: Groups that one program of one warp quantises.
GROUPS_PER_PROGRAM = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Activations:
    """M rows of G groups.

    words: int32 [M, 2 or 1, 8, G], four bytes each, high bytes before low ones; float32 [M, 1, 32,
    G] in mode "float", in FLOATS_UNIT. scale: float32 [M, G]. sums: int32 [M, 2, G], of the
    integers of each half of a group; float32 in mode "float", of the numbers. squares: float32 [M,
    G], the sum of the squares of each group before an RMSNorm's scale, or None: no norm. With them,
    all numbers of a row are still to be multiplied by 1 / sqrt(mean square + epsilon). in_turn:
    whether bytes are in the order of `codes.signed_bytes` of that name.
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
        """M."""
        return self.words.shape[0]

    @property
    def groups(self) -> int:
        """G, the groups of a row."""
        return self.words.shape[-1]


def shapes(rows: int, groups: int, mode: str, normed: bool) -> list[jax.ShapeDtypeStruct]:
    """Of words, scale, sums and, where `normed`, squares."""
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
    """Activations of arrays as `shapes` lists them."""
    return Activations(*arrays, *[None] * (4 - len(arrays)), mode, epsilon, in_turn)


def quantize(
    x_MK, mode: str, *, norm=None, epsilon: float = 0.0, in_turn: bool = False, target: Target
) -> Activations:
    """Quantise x [M, K] of any float dtype, K a multiple of 32.

    Args:
        x_MK: the numbers.
        mode: one of MODES.
        norm: the scale [K] of an RMSNorm that comes first, or None.
        epsilon: the epsilon of that norm.
        in_turn: whether bytes are in the order of `codes.signed_bytes` of that name.
        target: what the kernel is compiled for.
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
    """In a kernel: quantise x, float32 [n, 32], and write it as the groups g [n] of a row.

    refs: of words, scale, sums.
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
    """`quantize` in plain jnp, bytes not in turn."""
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
        Words [groups, 8 or 32] of each part, scale [groups] and sums [groups, 2]. With `in_turn`
        the words are those of positions 0, 4, 1, 5 and so on, as `Activations` has them.
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
    """The factors that make integers of numbers, and their inverses.

    largest: the largest number of each group, float32.
    """
    top = np.float32(LARGEST[mode])
    inverse = jnp.where(
        largest > 0, top / jnp.where(largest > 0, largest, np.float32(1)), np.float32(0)
    )
    return inverse, largest / top


def _powers_of_two(largest):
    """The inverses of the powers of two of float32 numbers, and these powers.

    Both are normal floats, 2^-126 to 2^126.
    """
    biased = jnp.clip(jax.lax.bitcast_convert_type(largest, jnp.int32) >> 23, 1, 253)
    return power_of_two(255 - biased), power_of_two(biased + 1)


def to_integers(x, inverse):
    """float32 numbers -> int32."""
    return jnp.floor(x * inverse + np.float32(0.5)).astype(jnp.int32)


def as_bytes(q, mode: str) -> list:
    """int32 -> its parts, each a signed byte in an int32: high before low, or itself."""
    if mode == "int8":
        return [q]
    high = (q + 64) >> 7
    return [high, q - (high << 7)]


def _as_words(q, in_turn):
    """Signed bytes as int32 [groups, 32] -> int32 words [groups, 8]."""
    if not in_turn:
        shift = 8 * jax.lax.broadcasted_iota(jnp.int32, (1, 1, 4), 2)
        return ((q.reshape(-1, POSITIONS, 4) & 255) << shift).sum(axis=2)
    q = q.reshape(-1, 2, POSITIONS // 2, 2, 2)  # half, position of it, word, byte of that half
    shift = 8 * jax.lax.broadcasted_iota(
        jnp.int32, (1, 2, 1, 1, 2), 1
    ) + 16 * jax.lax.broadcasted_iota(jnp.int32, (1, 2, 1, 1, 2), 4)
    return ((q & 255) << shift).sum(axis=4).sum(axis=1).reshape(-1, POSITIONS)
