"""Prefetches a model's weights in a thread while JAX and Flax are being imported.

`read_ahead` starts the thread, and `models.load_decoder` uses the planes that it has computed. Use
it in programs that know their model before they import anything else, like the command line. This
module does not import JAX.
"""

import contextlib
import importlib.metadata
import importlib.util
import sys
import threading
from pathlib import Path

import numpy as np

from rocmforge_jax.cpp import current, stored
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.memory import available_bytes
from rocmforge_jax.quant import repack
from rocmforge_jax.settings import jax_platforms

#: The largest file that is prefetched, as a fraction of the available memory. The proper check
#: whether a model fits comes later.
MOST = 0.4


def read_ahead(path) -> None:
    """Starts converting a GGUF file's quantised matrices to planes for a CPU.

    Without the file, the C++ library or enough memory it silently does nothing. `load_decoder`
    reads everything that was not prefetched.
    """
    global _reader
    stop()
    with contextlib.suppress(RuntimeError):  # no more threads can be started
        _reader = _Reader(Path(path))


def take(tensor) -> dict[str, np.ndarray] | None:
    """Waits for the planes of a TensorInfo and returns them, or None if it is not prefetched."""
    return _reader and _reader.take(tensor)


def stop() -> None:
    """Stops prefetching and drops the planes that were not used."""
    global _reader
    if _reader:
        _reader.stop()
    _reader = None


class _Reader:
    def __init__(self, path: Path):
        self._path, self._made, self._changed, self._ended = path, {}, threading.Condition(), False
        # Not a daemon thread, so Python waits for it at exit. A thread that is killed while it
        # loads JAX's libraries would hold the loader's lock for ever.
        threading.Thread(target=self._run, name="read-ahead").start()

    def take(self, tensor):
        if tensor.path != self._path:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._ended or tensor.offset in self._made)
            return self._made.pop(tensor.offset, None)

    def stop(self):
        with self._changed:
            self._ended = True
            self._made.clear()
            self._changed.notify_all()

    def _run(self):
        interval = sys.getswitchinterval()
        # Each return from C++ waits up to one interval (by default 5 ms) for the importing thread.
        sys.setswitchinterval(1e-4)
        try:
            self._read()
        except Exception:  # `load_decoder` reports problems of the file or the machine
            pass
        finally:
            sys.setswitchinterval(interval)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self):
        gguf = open_gguf(self._path)
        if sum(tensor.nbytes for tensor in gguf.tensors.values()) > MOST * (available_bytes() or 0):
            return
        if (library := _library()) is None:
            return
        for tensor in gguf.tensors.values():
            if self._ended:
                return
            if (
                len(tensor.shape) > 1
                and tensor.format.is_quantized
                and tensor.format.packing is not None
                and tensor.path == self._path
            ):
                try:
                    planes = repack.planes_of(library, tensor.data, tensor.format)
                except NotImplementedError:  # a type that C++ does not repack
                    continue
                tensor.forget()
                with self._changed:
                    if self._ended:
                        return
                    self._made[tensor.offset] = planes
                    self._changed.notify_all()


def _library() -> Path | None:
    """Returns the C++ library if JAX computes on a CPU, else None."""
    if _only_cpu():
        if (library := current.find()) is not None:
            stored.require_complete(library)
        return library
    # Only JAX finds out whether there is a GPU. Waits until the main thread has imported JAX: two
    # threads that import packages in another order may deadlock.
    import jax.extend.core  # noqa: F401

    from rocmforge_jax.backends import cpp

    cpp.instructions()  # raises NotImplementedError without the C++ library
    return cpp.file()


def _only_cpu() -> bool:
    """Returns whether JAX certainly computes on a CPU, which it does without plugins.

    JAX finds plugins for other devices in the package `jax_plugins` and by entry points.
    """
    if (platforms := jax_platforms()) is not None:
        return platforms == "cpu"
    entry_points = importlib.metadata.entry_points(group="jax_plugins")
    return importlib.util.find_spec("jax_plugins") is None and not entry_points


_reader: _Reader | None = None
