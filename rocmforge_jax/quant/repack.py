"""Blocks of a file -> planes in "groups" layout, in C++.

The library reads the mapped file and writes the arrays that JAX uses. It computes what
`word_packed.split` does, at a few gigabytes a second and without temporaries; that function needs a
copy of the file's bytes on the device, a compiled program for each shape, and arrays between.
"""

import functools

import numpy as np

from pallas_kernels.packing import GROUP
from rocmforge_jax.backends import cpp
from rocmforge_jax.cpp import repack as cpp_repack
from rocmforge_jax.formats import Format
from rocmforge_jax.quant import word_packed

#: Bits that C++ unpacks from the first and from the second field of the codes.
_BITS = ((1, 2, 4), (1, 2))
#: Codes in a run of more than one word are unpacked by as many at a time.
_VECTOR = 8
#: Scales of a block that C++ has room for.
_MOST_SCALES = 16


def planes_of(row_bytes: np.ndarray, fmt: Format) -> dict[str, np.ndarray]:
    """Repacks rows in the host's memory: uint8 [..., N, row bytes] -> planes in "groups".

    Raises:
        NotImplementedError: there is no library, or it cannot repack the type.
    """
    cpp.instructions()
    *lead, rows, nbytes = row_bytes.shape
    stacked = np.ascontiguousarray(row_bytes).reshape(-1, nbytes)
    planes = cpp_repack.repack(cpp.file(), stacked, blocks_of(fmt), word_packed.packing(fmt))
    return {name: plane.reshape(*lead, rows, *plane.shape[1:]) for name, plane in planes.items()}


@functools.cache
def blocks_of(fmt: Format) -> cpp_repack.Blocks:
    """Where the fields of a block are, for C++.

    Raises:
        NotImplementedError: C++ cannot repack the type, with the reason.
    """
    how, offsets, at = word_packed.declared(fmt), {}, 0
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
    how = word_packed.declared(fmt)
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
