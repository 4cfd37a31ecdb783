"""Prefetches a model's weights in a thread, while jax and flax are still being imported.

The imports take a second of one processor. `read_ahead` starts the thread and
`models.load_decoder` takes the planes that it has made. It is for programs that know their model
before they import anything else, as the command line does. Importing this file imports no jax.
"""

import contextlib
import sys
import threading
from pathlib import Path

import numpy as np

from rocmforge_jax.memory import available_bytes

#: Share of the memory that is available up to which a file is read before anybody has checked
#: whether it fits.
MOST = 0.4


def read_ahead(path) -> None:
    """Begin to turn a GGUF file's quantised matrices into planes for a CPU.

    Nothing happens, and nothing is said, where there is no file, no C++ or little memory:
    `load_decoder` reads what is missing.
    """
    global _reader
    stop()
    with contextlib.suppress(RuntimeError):  # the system starts no more threads
        _reader = _Reader(Path(path))


def take(tensor) -> dict[str, np.ndarray] | None:
    """Waits for the planes of a TensorInfo and hands them over; None if it is not prefetched."""
    return _reader and _reader.take(tensor)


def stop() -> None:
    """Let go of what was read and not taken."""
    global _reader
    if _reader:
        _reader.stop()
    _reader = None


class _Reader:
    def __init__(self, path: Path):
        self._path, self._made, self._changed, self._ended = path, {}, threading.Condition(), False
        # Python waits for it at the end: a thread that is cut off while it loads jax's libraries
        # would keep the loader's lock for ever.
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
        # Each return from C++ waits up to one interval for the importing thread: usually 5 ms.
        sys.setswitchinterval(1e-4)
        try:
            self._read()
        except Exception:  # whatever is wrong with the file or the machine is said by who loads it
            pass
        finally:
            sys.setswitchinterval(interval)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read(self):
        from rocmforge_jax.gguf import open_gguf

        gguf = open_gguf(self._path)
        if sum(tensor.nbytes for tensor in gguf.tensors.values()) > MOST * (available_bytes() or 0):
            return
        from rocmforge_jax.backends import cpp
        from rocmforge_jax.quant import repack, word_packed

        cpp.instructions()  # NotImplementedError where there are none
        for tensor in gguf.tensors.values():
            if self._ended:
                return
            if (
                len(tensor.shape) > 1
                and tensor.format.is_quantized
                and word_packed.can_hold(tensor.format)
                and tensor.path == self._path
            ):
                try:
                    planes = repack.planes_of(tensor.data, tensor.format)
                except NotImplementedError:  # a type that C++ does not repack
                    continue
                tensor.forget()
                with self._changed:
                    if self._ended:
                        return
                    self._made[tensor.offset] = planes
                    self._changed.notify_all()


_reader: _Reader | None = None
