"""Opens a GGUF model, which is one file or several split files."""

import difflib
import os
import stat
from pathlib import Path

from rocmforge_jax.gguf.container import Container, read_container
from rocmforge_jax.gguf.errors import GGUFError, listed, quoted, shortened
from rocmforge_jax.gguf.metadata import Metadata
from rocmforge_jax.gguf.overview import file_html
from rocmforge_jax.gguf.splits import read_split
from rocmforge_jax.gguf.tensors import Tensors


def open_gguf(path: str | os.PathLike) -> "GGUFFile":
    """Opens a GGUF model of version 2 or 3 in either byte order.

    Only the header, metadata and tensor table are read. Values are decoded and weights mapped on
    first access. Source: ggml's docs/gguf.md and src/gguf.cpp.

    Args:
        path: The file. For a split model, any of its files opens the whole model.

    Raises:
        FileNotFoundError: The file does not exist.
        GGUFError: The file is not valid GGUF.
    """
    if not os.fspath(path):
        raise FileNotFoundError("no file: the path is empty")
    path = Path(path)
    _check_is_file(path)
    return GGUFFile(path, read_split(path, read_container(path)))


class GGUFFile:
    """An open GGUF model.

    The files close when the last array on them is gone; `close` or `with` closes them earlier.

    Attributes:
        path: The path that was passed to `open_gguf`.
        paths: All files of the model, in order.
        version: The GGUF version of the first file.
        byte_order: "little" or "big", of the first file.
        alignment: The alignment of the tensor data in bytes, of the first file.
        metadata: The key-value pairs of the first file.
        tensors: All tensors by name, in file order.
    """

    def __init__(self, path: Path, containers: list[Container]):
        first = containers[0]
        self.path = path
        self.paths = tuple(container.mapped.path for container in containers)
        self.version, self.byte_order, self.alignment = (
            first.version,
            first.byte_order,
            first.alignment,
        )
        self.metadata: Metadata = first.metadata
        self.tensors = Tensors(
            item for container in containers for item in container.tensors.items()
        )
        self._containers = containers

    @property
    def architecture(self) -> str | None:
        """The value of general.architecture, or None if the file does not have the key.

        Raises:
            GGUFError: The value is not a string.
        """
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str | None):
            raise GGUFError(
                f"{self.path}: general.architecture must be text, got {quoted(architecture)}"
            )
        return architecture

    def close(self):
        """Closes the files.

        Arrays already taken from `data` stay valid. Any other read raises ValueError.
        """
        for container in self._containers:
            container.mapped.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        nbytes = sum(tensor.nbytes for tensor in self.tensors.values())
        files = f"{len(self.paths)} files, " if len(self.paths) > 1 else ""
        return (
            f"<GGUFFile {str(self.path)!r}: {files}version {self.version}, {self.byte_order}"
            f" endian, {len(self.metadata)} keys, {len(self.tensors)} tensors of {nbytes:,} bytes>"
        )

    def _repr_html_(self) -> str:
        return file_html(self)


def _check_is_file(path):
    # os.path, not path.exists(): that raises an error for a name that is too long.
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} is a broken link to {shortened(os.readlink(path))}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file {shortened(str(path))}{_beside(path.parent, path.name)}")
    if path.is_dir():
        raise GGUFError(f"{path} is a folder{_beside(path, '')}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise GGUFError(f"{path} is no regular file: it cannot be mapped")


def _beside(folder, name):
    """Returns the end of a message about a file or, without a name, about a folder.

    It lists the GGUF files of the folder, nearest names first.
    """
    if not os.path.isdir(folder):
        return "; its folder does not exist either"
    what = "the folder has" if name else "name a file in it:"
    there = sorted(child.name for child in folder.glob("*.gguf"))
    if there:
        # sorted is stable, so equally near names stay in alphabetical order.
        near = sorted(there, key=lambda other: -_likeness(name, other))
        return f"; {what} {listed(near, ', ', most=5)}"
    if any(folder.glob("*.safetensors")):
        has = "the folder has" if name else "it has"
        return f"; {has} a model in safetensors: convert it to GGUF"
    return "; the folder has no .gguf file" if name else " without a .gguf file"


def _likeness(name, other) -> float:
    """Returns the similarity of two names, ignoring case, as a number from 0 to 1."""
    return difflib.SequenceMatcher(None, name.lower()[:255], other.lower()).ratio()
