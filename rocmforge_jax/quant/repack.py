"""Blocks of a file -> planes in "groups" layout, in C++.

The library reads the mapped file and writes the arrays that JAX uses. It computes what
`word_packed.split` does, at a few gigabytes a second and without temporaries; that function needs a
copy of the file's bytes on the device, a compiled program for each shape, and arrays between.
This module does not import JAX.
"""

import functools
from pathlib import Path

import numpy as np

from rocmforge_jax.cpp import repack as cpp_repack
from rocmforge_jax.formats import Format
from rocmforge_jax.formats.packing import GROUP

#: Bits that C++ unpacks from the first and from the second field of the codes.
_BITS = ((1, 2, 4), (1, 2))
#: Codes in a run of more than one word are unpacked by as many at a time.
_VECTOR = 8
#: Scales of a block that C++ has room for.
_MOST_SCALES = 16


def planes_of(library: Path, row_bytes: np.ndarray, fmt: Format) -> dict[str, np.ndarray]:
    """Repacks rows in the host's memory: uint8 [..., N, row bytes] -> planes in "groups".

    Args:
        library: The file of a C++ library that loads.
        row_bytes: The rows.
        fmt: Their type.

    Raises:
        NotImplementedError: the library cannot repack the type.
    """
    *lead, rows, nbytes = row_bytes.shape
    stacked = np.ascontiguousarray(row_bytes).reshape(-1, nbytes)
    planes = cpp_repack.repack(library, stacked, blocks_of(fmt), fmt.declared_packing)
    return {name: plane.reshape(*lead, rows, *plane.shape[1:]) for name, plane in planes.items()}


@functools.cache
def blocks_of(fmt: Format) -> cpp_repack.Blocks:
    """Where the fields of a block are, for C++.

    Raises:
        NotImplementedError: C++ cannot repack the type, with the reason.
    """
    how, offsets, at = fmt.declared_packing, {}, 0
    if reason := _unsupported(fmt):
        raise NotImplementedError(f"C++ does not repack {fmt}: {reason}")
    for field in fmt.fields:
        offsets[field.name], at = at, at + field.nbytes
    return cpp_repack.Blocks(
        fmt.block,
        fmt.block_bytes,
        tuple((offsets[name], bits, run) for name, bits, run in how.codes),
        d=offsets.get(how.d),
        m=offsets.get(how.m),
        scales=how.scheme,
        **dict(zip(("at", "more_at"), (offsets[name] for name in how.scales))),
        exchanged=how.exchanged,
    )


def _unsupported(fmt: Format) -> str | None:
    """Why C++ cannot repack a type; None if it can."""
    how = fmt.declared_packing
    if how.scheme not in cpp_repack.SCALES:
        return f"no code for the scale scheme {how.scheme!r}"
    if (scales := fmt.block // GROUP * how.halves) > _MOST_SCALES:
        return f"a block has {scales} scales, at most {_MOST_SCALES} fit"
    if how.bits == 8 and len(how.codes) == 1:
        return None
    if len(how.codes) > len(_BITS):
        return f"codes come from {len(how.codes)} fields, at most {len(_BITS)} are read"
    words = {field.name: np.dtype(field.dtype).itemsize for field in fmt.fields}
    for (name, bits, run), supported in zip(how.codes, _BITS):
        if bits not in supported:
            return f"{name} has {bits} bits of each code, not one of {supported}"
        if run > 1 and (run % _VECTOR or words[name] > 1):
            return f"{name} has runs of {run} words, not of 1 or of multiples of {_VECTOR} bytes"
    return None
