"""A file's blocks -> planes in "groups" layout, in C++ where that is built: straight from the
mapped file into the arrays that JAX uses.

It computes what `word_packed.split` does, a few gigabytes a second and without temporaries; that
needs a copy of the file's bytes on the device, a compiled program for each shape, and arrays
between.
"""

import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

from pallas_kernels.native import repack as native_repack
from rocmforge_jax.formats import Format
from rocmforge_jax.quant import native, word_packed

if TYPE_CHECKING:
    from rocmforge_jax.quant.qtensor import QTensor

#: The function of `groups` that reads a type's small scales -> how `native.repack` calls that, and
#: the fields.
_SCALES = {
    word_packed._six_bit_pairs: ("six_bit_pairs", "scales"),
    word_packed._six_bits: ("six_bits", "scales"),
    word_packed._high_and_low: ("high_and_low", "scales_h", "scales_l"),
    word_packed._nibble_pairs: ("bytes", "scales"),
}


def planes_of(row_bytes: np.ndarray, fmt: Format) -> dict[str, np.ndarray]:
    """uint8 [..., N, row bytes] in the host's memory -> planes in "groups", there too.

    NotImplementedError without C++.
    """
    native.instructions()
    *lead, rows, nbytes = row_bytes.shape
    stacked = np.ascontiguousarray(row_bytes).reshape(-1, nbytes)
    planes = native_repack.repack(native.find(), stacked, blocks_of(fmt), word_packed.packing(fmt))
    return {name: plane.reshape(*lead, rows, *plane.shape[1:]) for name, plane in planes.items()}


def from_host(row_bytes: np.ndarray, fmt: Format, *, transposed: bool = False) -> "QTensor":
    """The QTensor of rows in the host's memory, in "groups". NotImplementedError as `planes_of`."""
    return from_planes(planes_of(row_bytes, fmt), fmt, transposed=transposed)


def from_planes(
    planes: dict[str, np.ndarray], fmt: Format, *, transposed: bool = False
) -> "QTensor":
    """The QTensor of planes that `planes_of` made, which are not copied."""
    from rocmforge_jax.quant.qtensor import QTensor  # which needs flax

    return QTensor(
        {name: jax.device_put(plane) for name, plane in planes.items()},
        fmt.name,
        "groups",
        transposed,
    )


@functools.cache
def blocks_of(fmt: Format) -> native_repack.Blocks:
    """Where the fields of a type are that "groups" can hold."""
    how, offsets, at = word_packed.repacking(fmt), {}, 0
    for field in fmt.fields:
        offsets[field.name], at = at, at + field.nbytes
    halves = {field.name for field in fmt.fields if field.dtype == "float16"}
    codes = tuple((offsets[name], bits, run) for name, bits, run in how.codes)
    small = [
        field.name
        for field in fmt.fields
        if field.name not in {name for name, *_ in how.codes} | halves
    ]
    kind, *fields = _SCALES.get(how.scales, ("bytes", *small)) if small else (None,)
    named = dict(zip(("at", "more_at"), (offsets[name] for name in fields)))

    def one_of(*names):
        return next((offsets[name] for name in names if name in halves), None)

    scales = dict(d=one_of("d"), m=one_of("m", "dmin"), scales=kind, **named)
    return native_repack.Blocks(
        fmt.block, fmt.block_bytes, codes, exchanged=how.exchanged, **scales
    )
