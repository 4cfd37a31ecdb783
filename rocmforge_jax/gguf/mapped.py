"""Memory-maps a file."""

import mmap

import numpy as np

from rocmforge_jax.gguf.errors import GGUFError


class MappedFile:
    """A file mapped read-only.

    If the file was truncated, access to the missing bytes raises an error. Touching them would kill
    the process.
    """

    def __init__(self, file, path):
        self.path = path
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(self, start, stop) -> np.ndarray:
        """Returns bytes `start` to `stop` as a read-only uint8 array on the map."""
        mapped = self._open(stop)
        return (
            np.frombuffer(mapped, np.uint8, stop - start, start)
            if stop > start
            else np.empty(0, np.uint8)
        )

    def read(self, start, stop) -> bytes:
        """Returns a copy of bytes `start` to `stop`."""
        return self._open(stop)[start:stop]

    def forget(self, start, stop):
        """Releases the pages between two byte offsets.

        They are read from the file again on the next access.
        """
        start, stop = (
            -(-start // mmap.PAGESIZE) * mmap.PAGESIZE,
            stop // mmap.PAGESIZE * mmap.PAGESIZE,
        )
        if self._map is not None and stop > start and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self):
        """Drops the map, which stays open until the last view on it is gone."""
        self._map = None

    def _open(self, stop) -> mmap.mmap:
        """Returns the map.

        Raises:
            ValueError: The file was closed.
            GGUFError: The file is now shorter than `stop` bytes.
        """
        if self._map is None:
            raise ValueError(f"{self.path} is closed: open it again")
        if (size := min(len(self._map), self._map.size())) < stop:
            raise GGUFError(
                f"{self.path}: the file shrank after it was opened: it has {size} bytes, {stop} are"
                " needed"
            )
        return self._map
