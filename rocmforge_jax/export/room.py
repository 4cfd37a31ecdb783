"""Checks that what is to be written has room."""

import errno
import shutil
from pathlib import Path


def check_room(folder: Path, nbytes: int) -> None:
    """Raises OSError, before anything is written, where a folder's disk has less room.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: There is less room, with both numbers.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: make it first")
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has room for {free / 1e6:,.1f} MB, the model takes {nbytes / 1e6:,.1f} MB",
        )
