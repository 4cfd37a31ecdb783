"""Keeps a library in a folder so that it is there completely or not at all.

The name of the file ends in a checksum of its bytes. One rename puts both in place, and whoever
loads the file compares them: the loader of the system would die of a bus error on a file that
was cut off.
"""

import contextlib
import fnmatch
import hashlib
import os
from pathlib import Path

_DIGITS = 16


def put(made: Path, folder: Path, prefix: str) -> Path:
    """Moves a file to its final name in a folder of the same file system, and returns the name."""
    with open(made, "rb+") as file:  # on the disk before it has its name
        os.fsync(file.fileno())
    library = folder / f"{prefix}-{_checksum(made)}.so"
    os.replace(made, library)
    return library


def newest(folder: Path, prefix: str) -> Path | None:
    """Returns the file of that prefix that was put last, None where there is none."""
    dated = []
    for path in _all(folder, prefix):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            dated.append((path.stat().st_mtime_ns, path))
    return max(dated)[1] if dated else None


def newest_complete(folder: Path, prefix: str) -> Path | None:
    """Returns the complete file of that prefix that was put last, None where there is none."""
    found = newest(folder, prefix)
    return found if found is not None and is_complete(found) else None


def remove_incomplete(folder: Path, prefix: str) -> None:
    """Removes the files of that prefix that are damaged."""
    for path in _all(folder, prefix):
        if not is_complete(path):
            with contextlib.suppress(OSError):
                path.unlink()


def is_complete(library: Path) -> bool:
    """Returns whether a file can be read and has the checksum of its name."""
    try:
        return library.stem.endswith(f"-{_checksum(library)}")
    except OSError:
        return False


def require_complete(library: Path) -> None:
    """Raises OSError for a file that cannot be read or is damaged, with both checksums."""
    found = _checksum(library)
    if not library.stem.endswith(f"-{found}"):
        raise OSError(
            f"{library} is damaged: it has {library.stat().st_size} bytes with the checksum"
            f" {found}, and its name the checksum {library.stem.rpartition('-')[2]}"
        )


def _all(folder: Path, prefix: str) -> list[Path]:
    try:
        names = os.listdir(folder)
    except OSError:  # not there, not readable or no folder
        return []
    return [Path(folder, name) for name in fnmatch.filter(names, f"{prefix}-*.so")]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
