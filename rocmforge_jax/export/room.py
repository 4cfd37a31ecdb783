"""Makes folders for what is to be written, if there is room."""

import errno
import shutil
from pathlib import Path


def make_folder(folder: Path, nbytes: int) -> None:
    """Makes a folder, with those around it, if its disk has room.

    Raises:
        NotADirectoryError: A file has the name of the folder, or of one around it.
        OSError: There is less room, with both numbers.
    """
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: a folder is needed there")
    free = shutil.disk_usage(there).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has room for {free / 1e6:,.1f} MB, the model takes {nbytes / 1e6:,.1f} MB",
        )
    folder.mkdir(parents=True, exist_ok=True)
