"""Bounds the memory of a test process: what XLA compiled for earlier tests is given back."""

import ctypes
import sys

import psutil

#: Bytes of resident memory above which compiled programs are dropped. Two processes then fit into
#: 6 GB. Without jax's caches a process has 0.5 GB, and a test adds 0.1 GB at most.
MOST = 2 << 30


def give_back():
    """Drops all that jax compiled and traced, if this process has grown beyond `MOST`.

    A later test that needs a dropped program reads it from the compilation cache on disk.
    """
    if psutil.Process().memory_info().rss < MOST or (jax := sys.modules.get("jax")) is None:
        return
    jax.clear_caches()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # otherwise glibc keeps the freed memory
