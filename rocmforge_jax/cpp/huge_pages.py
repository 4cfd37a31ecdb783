"""Memory on huge pages, if the system has them.

A product reads each weight once. With pages of 4 KB, it waits for address translations, which slows
reading, above all in virtual machines (measured: docs/kernels.md).
"""

import contextlib
import math
import mmap
import threading

import numpy as np

#: Bytes of a huge page on most processors.
PAGE = 2 << 20
#: Alignment in bytes of host arrays that XLA uses without a copy.
ALIGNMENT = 64
#: Arrays smaller than LARGE bytes share memory of SHARED bytes, so that they fill huge pages
#: together. Memory is freed with the last array in it, so large arrays do not share memory.
SHARED, LARGE = 64 << 20, 16 << 20
_lock, _unused = threading.Lock(), np.empty(0, np.uint8)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Makes an array like `numpy.empty`, aligned for XLA, and on huge pages if possible."""
    global _unused
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes >= LARGE:
        memory = _mapped(nbytes)
    else:
        with _lock:
            if _unused.nbytes < nbytes:
                _unused = _mapped(SHARED)
            memory = _unused
            _unused = memory[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
    return memory[:nbytes].view(dtype).reshape(shape)


def _mapped(nbytes: int) -> np.ndarray:
    """Maps memory that begins at a huge page, or allocates aligned memory without huge pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        memory, alignment = np.empty(nbytes + ALIGNMENT, np.uint8), ALIGNMENT
    else:
        pages = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a Linux kernel that is built without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory, alignment = np.frombuffer(pages, np.uint8), PAGE
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes]
