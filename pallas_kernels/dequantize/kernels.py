"""The dequantisation kernel, which reads the planes once.

Each thread turns words of codes into four neighbouring values and writes them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels import triton
from pallas_kernels.dequantize.blocks import Blocks
from pallas_kernels.packing import (
    GROUP,
    POSITIONS,
    SUBNORMAL_BELOW,
    Packing,
    field_of_position,
    parts,
    power_of_two,
    times_power_of_two,
    values,
)
from pallas_kernels.targets import Target


def dequantize(planes, packing: Packing, dtype, groups: int, blocks: Blocks, target: Target):
    """Run the kernel on the planes of a matrix and return its values [N, K] in `dtype`."""
    rows = planes["codes"].shape[0]
    names, fours = sorted(planes), groups * POSITIONS
    tile = min(blocks.fours, pl.next_power_of_2(fours))

    def kernel(point, *refs):
        refs, out_ref = dict(zip(names, refs)), refs[-1]
        row, u = point[0], point[1] * tile + jnp.arange(tile)
        mask = u < fours if fours % tile else None
        g, position = u // POSITIONS, u % POSITIONS

        def load(name, *index):
            return triton.load(refs[name], (row, *index), mask=mask)

        def get(name):
            if name == "d":
                entry = load(name, g // packing.span)
            else:
                entry = load(
                    name, position // 4 if packing.halves == 2 else jnp.zeros_like(position), g
                )
            return jnp.broadcast_to(entry[:, None], (tile, 4))

        words = _codes(lambda i: load("codes", i, g), packing, position, target)
        codes = (words[:, None] << (24 - 8 * jax.lax.broadcasted_iota(jnp.int32, (1, 4), 1))) >> 24
        out = _values(packing, codes - packing.offset, get, mask, target).astype(dtype)
        byte = jnp.arange(4)[None]
        wide = None if mask is None else mask[:, None] & (byte >= 0)
        triton.store(out_ref, (row, u[:, None], byte), out, mask=wide)

    out = triton.call(
        kernel,
        jax.ShapeDtypeStruct((rows, fours, 4), dtype),
        grid=(rows, pl.cdiv(fours, tile)),
        target=target,
        warps=blocks.warps,
        name="dequantize",
    )(*(planes[name] for name in names))
    return out.reshape(rows, groups * GROUP)


def _values(packing, codes, get, mask, target):
    """Compute `packing.values` of codes [tile, 4].

    Scales that are powers of two are applied by multiplication if none of them is subnormal, or if
    the GPU keeps subnormal numbers. Otherwise a slower, exact path is used. No known model needs
    it.
    """
    if packing.scale != "e8m0":
        return values(packing, codes, get)
    e, numbers = get("scale").astype(jnp.int32), codes.astype(jnp.float32)
    if target.platform == "cuda":  # keeps subnormal numbers
        return numbers * power_of_two(e, subnormal=True)
    smallest = (e if mask is None else jnp.where(mask[:, None], e, 255)).min()
    exact, quick = lambda: times_power_of_two(numbers, e), lambda: numbers * power_of_two(e)
    return jax.lax.cond(smallest < SUBNORMAL_BELOW, exact, quick)


def _codes(load, packing, position, target):
    """Return the codes at a position of each group, as int32 words of four signed bytes.

    load(i): loads word i of each group; i is an array.
    """
    total = None
    for first, part, low in parts(packing.bits):
        word, shift = field_of_position(position, part)
        field = (load(first + word) >> shift.astype(jnp.uint32)) & np.uint32(
            ((1 << part) - 1) * 0x01010101
        )
        field = field << np.uint32(low)
        total = field if total is None else total | field
    if packing.table is not None:
        return triton.bytes_of_table(total, packing.table, target)[0]
    return total.astype(jnp.int32)
