"""Bounds the memory of a test process by dropping what XLA compiled for earlier tests."""

import ctypes
import sys

import psutil

#: Bytes of resident memory at which compiled programs are dropped, so that two processes fit into
#: 6 GB. Without programs a process on the CPU has about 0.5 GB.
FIRST_LIMIT = 2 << 30
#: Bytes that a process may grow after a drop, where it holds more than that: on a GPU it does.
GROWTH = 1 << 30


class Memory:
    """The memory of this process, looked at between tests."""

    def __init__(self, limit: int = FIRST_LIMIT):
        self._process, self._limit = psutil.Process(), limit

    def give_back(self):
        """Drops all that jax has compiled and traced, if the process has reached its limit.

        A later test that needs a dropped program reads it from the compilation cache on disk.
        """
        if self._resident() < self._limit or (jax := sys.modules.get("jax")) is None:
            return
        jax.clear_caches()
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # otherwise glibc keeps the freed memory
        self._limit = max(FIRST_LIMIT, self._resident() + GROWTH)

    def _resident(self) -> int:
        return self._process.memory_info().rss
