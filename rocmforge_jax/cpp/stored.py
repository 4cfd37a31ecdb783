"""Stores libraries in a folder, so that a library is either complete or recognised as damaged.

The name of a file ends in a checksum of its bytes, and the file gets this name by a rename. The
checksum is compared before loading, because loading a truncated file would crash the process with a
bus error.
"""

import contextlib
import fnmatch
import hashlib
import os
from pathlib import Path

_DIGITS = 16


def put(made: Path, folder: Path, prefix: str) -> Path:
    """Moves a file to its final name in a folder of the same file system, and returns the path."""
    with open(made, "rb+") as file:  # written to the disk before the rename
        os.fsync(file.fileno())
    library = folder / f"{prefix}-{_checksum(made)}.so"
    os.replace(made, library)
    return library


def newest(folder: Path, prefix: str) -> Path | None:
    """Returns the latest file with a prefix, or None."""
    dated = []
    for path in _all(folder, prefix):
        with contextlib.suppress(OSError):  # another process removed it
            dated.append((path.stat().st_mtime_ns, path))
    return max(dated)[1] if dated else None


def newest_complete(folder: Path, prefix: str) -> Path | None:
    """Returns the latest file with a prefix if it is complete, else None."""
    found = newest(folder, prefix)
    return found if found is not None and is_complete(found) else None


def remove_incomplete(folder: Path, prefix: str) -> None:
    """Removes the damaged files with a prefix."""
    for path in _all(folder, prefix):
        if not is_complete(path):
            with contextlib.suppress(OSError):
                path.unlink()


def is_complete(library: Path) -> bool:
    """Returns whether a file can be read and has the checksum that its name contains."""
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
    except OSError:  # missing, not readable, or not a folder
        return []
    return [Path(folder, name) for name in fnmatch.filter(names, f"{prefix}-*.so")]


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]
