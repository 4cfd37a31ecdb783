"""Finds the library that is used: the user's own, or that of the installed wheel.

It does not import JAX.
"""

import functools
from pathlib import Path

from rocmforge_jax import settings
from rocmforge_jax.cpp import build, packaged


def find() -> Path | None:
    """Returns the user's own library, else the library of the installed wheel, else None."""
    folder = settings.cpp_folder()
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return packaged.find()
    return _find(folder, changed) or packaged.find()


@functools.cache
def _find(folder: Path, changed: int) -> Path | None:
    """Finds the library in a folder.

    `changed` is part of the cache key, because another process may have built the library.
    """
    return build.find(folder)
