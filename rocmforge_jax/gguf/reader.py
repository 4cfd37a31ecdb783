"""Opening a GGUF model: one file, or all files of a split one."""

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
    """Open a GGUF file, version 2 or 3, either byte order.

    Any file of a split model opens all of it.

    Only the head is read: values are decoded and weights mapped when they are asked for.
    FileNotFoundError where nothing is, GGUFError for anything that is no valid GGUF file. Source:
    ggml's docs/gguf.md and src/gguf.cpp.
    """
    if not os.fspath(path):
        raise FileNotFoundError("no file: the path is empty")
    path = Path(path)
    _check_is_file(path)
    return GGUFFile(path, read_split(path, read_container(path)))


class GGUFFile:
    """An open GGUF model.

    Closes itself when the last array on it goes; `close` or `with` does it earlier.

    path: as given. paths: all files of the model, in order. version, byte_order ("little", "big"),
    alignment: of the first file, as `metadata`. tensors: name -> TensorInfo in file order.
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
        """The value of general.architecture, None where the file has none.

        GGUFError where it is no text.
        """
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str | None):
            raise GGUFError(
                f"{self.path}: general.architecture must be text, got {quoted(architecture)}"
            )
        return architecture

    def close(self):
        """Let go of the files.

        Arrays that were taken from `data` stay valid; reading anything else is a ValueError.
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
    # os.path, not path.exists(): a name that is too long is one that is not there.
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} is a broken link to {shortened(os.readlink(path))}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"no file {shortened(str(path))}{_beside(path.parent, path.name)}")
    if path.is_dir():
        raise GGUFError(f"{path} is a folder, name a file in it{_beside(path, '')}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise GGUFError(f"{path} is no regular file: it cannot be mapped")


def _beside(folder, name):
    """Says which GGUF files a folder has, the nearest names first."""
    if not os.path.isdir(folder):
        return "; its folder does not exist either"
    there = sorted(child.name for child in folder.glob("*.gguf"))
    if there:
        # sorted keeps the order of names that are equally near: of all, without a name.
        near = sorted(there, key=lambda other: -_likeness(name, other))
        return f"; {folder} has {listed(near, ', ', most=5)}"
    if any(folder.glob("*.safetensors")):
        return f"; {folder} has a model in safetensors: convert it to GGUF"
    return f"; {folder} has no .gguf file"


def _likeness(name, other) -> float:
    """Returns from 0 to 1 how much alike two names are, whatever their case."""
    return difflib.SequenceMatcher(None, name.lower()[:255], other.lower()).ratio()
