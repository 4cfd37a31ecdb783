"""Loads a compiled library and registers its functions with JAX.

JAX has one registry of functions per process, so a library is loaded for the whole process.
"""

import ctypes
import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import jax

from rocmforge_jax.cpp import stored

#: Name of a custom call in JAX -> its symbol in the library.
TARGETS = {
    "rocmforge_multiply": "Multiply",
    "rocmforge_multiply_experts": "MultiplyExperts",
    "rocmforge_multiply_dense": "MultiplyDense",
    "rocmforge_attend": "Attend",
    "rocmforge_rotate_and_store": "RotateAndStore",
    "rocmforge_delta_step": "DeltaStep",
    "rocmforge_scan_step": "ScanStep",
}
_registered: Path | None = None


class Form(NamedTuple):
    """The properties of a packing that determine whether the library supports it."""

    bits: int
    table: bool
    halves: int
    minimum: bool


class Prefetch(NamedTuple):
    """The distances of a GEMV's prefetches, in bytes from the weights that are being multiplied.

    Attributes:
        l1: The distance of the prefetch into the first-level cache, or 0 for none.
        l2: The distance of the prefetch into the second-level cache, or 0 for none.
    """

    l1: int
    l2: int

    def __str__(self):
        parts = [f"{ahead} bytes ahead into L{i}" for i, ahead in enumerate(self, 1) if ahead]
        return " and ".join(parts) or "none"


@functools.cache
def load(library: Path) -> str:
    """Registers the functions of a compiled library with JAX.

    Args:
        library: The file that `build.build` made.

    Returns:
        The name of the instruction set that the library uses.

    Raises:
        OSError: The file is not such a library, or it is damaged.
    """
    global _registered
    opened = _opened(library)
    for name, symbol in TARGETS.items():
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(getattr(opened, symbol)), platform="cpu"
        )
    _registered = library
    return opened.kernels_in_use().decode()


def loaded() -> Path:
    """Returns the library that was loaded last; raises RuntimeError before the first one."""
    if _registered is None:
        raise RuntimeError("no C++ library is loaded: call rocmforge_jax.cpp.library.load first")
    return _registered


@functools.cache
def forms(library: Path) -> frozenset[Form]:
    """Returns the forms of packings that a library supports.

    They are the same for all sets of instructions.
    """

    def numbers(index) -> list[int]:
        form = (ctypes.c_int64 * len(Form._fields))()
        return list(form) if _opened(library).packing_form(index, form) else []

    found = itertools.takewhile(bool, map(numbers, itertools.count()))
    return frozenset(
        Form(bits, bool(table), halves, bool(minimum)) for bits, table, halves, minimum in found
    )


def instructions(library: Path) -> list[str]:
    """Lists the instruction sets that the library and the processor support, fastest first."""
    names = map(_opened(library).kernels_that_run, itertools.count())
    return [name.decode() for name in itertools.takewhile(bool, names)]


def use(library: Path, name: str) -> None:
    """Makes all calls use one instruction set from now on, for tests and measurements.

    Args:
        library: A library that is loaded.
        name: One of `instructions(library)`.

    Raises:
        ValueError: The library or the processor does not support the name.
    """
    if not _opened(library).use_kernels(name.encode()):
        raise ValueError(
            f"{name!r} is none of the instructions of this processor:"
            f" {', '.join(instructions(library))}"
        )


def prefetch(library: Path) -> Prefetch:
    """Returns the prefetch that products use."""
    l1, l2 = ctypes.c_int64(), ctypes.c_int64()
    _opened(library).get_prefetch(ctypes.byref(l1), ctypes.byref(l2))
    return Prefetch(l1.value, l2.value)


def use_prefetch(library: Path, wanted: Prefetch | None) -> None:
    """Makes all products use a prefetch from now on; None selects the default of the library."""
    if wanted is not None and not all(0 <= ahead < 1 << 31 for ahead in wanted):
        raise ValueError(f"distances of a prefetch are 0 to 2147483647 bytes, not {[*wanted]}")
    _opened(library).set_prefetch(*map(ctypes.c_int64, wanted or (-1, 0)))


@functools.cache
def _opened(library: Path) -> ctypes.CDLL:
    stored.require_complete(library)
    opened = ctypes.CDLL(str(library))
    opened.kernels_in_use.restype = opened.kernels_that_run.restype = ctypes.c_char_p
    opened.use_kernels.restype = opened.packing_form.restype = ctypes.c_bool
    return opened
