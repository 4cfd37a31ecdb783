"""Memory on huge pages, where the system has them.

A product reads each weight once. From pages of 4 KB it waits for their addresses: in a virtual
machine it then reads at half of the speed.
"""

import contextlib
import math
import mmap
import threading

import numpy as np

#: Bytes of a huge page of most processors.
PAGE = 2 << 20
#: Alignment in bytes of host arrays that XLA uses without a copy.
ALIGNMENT = 64
#: Bytes that smaller arrays share, so that they fill huge pages together. The memory is returned
#: once the last array in it is gone, so a large array has memory of its own.
SHARED, LARGE = 64 << 20, 16 << 20
_lock, _unused = threading.Lock(), np.empty(0, np.uint8)


def empty(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Makes an array like `numpy.empty`, aligned for XLA, on huge pages where there are some."""
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
    """Maps memory that begins at a huge page; aligned memory where the system has no such pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        memory, alignment = np.empty(nbytes + ALIGNMENT, np.uint8), ALIGNMENT
    else:
        pages = mmap.mmap(-1, nbytes + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel that is built without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory, alignment = np.frombuffer(pages, np.uint8), PAGE
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes]
