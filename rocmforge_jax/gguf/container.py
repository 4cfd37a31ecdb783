"""Reads one GGUF file: header, metadata and tensor table."""

import os
from dataclasses import dataclass
from pathlib import Path

from rocmforge_jax.gguf.cursor import HeaderCursor
from rocmforge_jax.gguf.entries import read_entries
from rocmforge_jax.gguf.errors import GGUFError
from rocmforge_jax.gguf.limits import DEFAULT_ALIGNMENT, MAX_ALIGNMENT
from rocmforge_jax.gguf.mapped import MappedFile
from rocmforge_jax.gguf.metadata import Metadata
from rocmforge_jax.gguf.not_gguf import refusal
from rocmforge_jax.gguf.tensors import TensorInfo, read_tensors

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class Container:
    """The contents of one GGUF file.

    Attributes:
        mapped: The mapped file.
        version: The GGUF version.
        byte_order: "little" or "big".
        alignment: The alignment of the tensor data, in bytes.
        metadata: The key-value pairs.
        tensors: The tensors by name, in file order.
    """

    mapped: MappedFile
    version: int
    byte_order: str
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def read_container(path: Path) -> Container:
    """Reads the header, metadata and tensor table of a file, and maps the file.

    Raises:
        GGUFError: The file is invalid.
    """
    with open(path, "rb") as file:
        cursor = HeaderCursor(file, os.fstat(file.fileno()).st_size, path)
        version = _read_version(cursor)
        tensor_count, key_count = cursor.numbers("QQ", "the numbers of tensors and keys")
        entries = read_entries(cursor, key_count)
        mapped = MappedFile(file, path)
        metadata = Metadata(entries, mapped, cursor.order)
        alignment = _alignment(cursor, metadata)
        tensors = read_tensors(cursor, tensor_count, alignment, mapped)
    return Container(
        mapped, version, "little" if cursor.order == "<" else "big", alignment, metadata, tensors
    )


def _read_version(cursor):
    if cursor.size == 0:
        cursor.refuse("the file is empty")
    magic = cursor.take(min(len(MAGIC), cursor.size), "the magic")
    if magic != MAGIC[: len(magic)]:
        raise GGUFError(refusal(cursor.path))
    version = cursor.number("I", "the version")
    if version % 2**16 == 0:  # the version is a small number, so the byte order is the other one
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version == 1:
        cursor.refuse(
            "GGUF version 1, with 32-bit lengths, is no longer read: convert the model again", 4
        )
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        newer = ": update rocmforge-jax" if version > max(VERSIONS) else ""
        cursor.refuse(f"GGUF version {version}, this reader knows {known}{newer}", 4)
    return version


def _alignment(cursor, metadata):
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    entry = metadata.entry(ALIGNMENT_KEY)
    if (entry.type, entry.count) != ("uint32", None):
        cursor.refuse(f"{ALIGNMENT_KEY!r} is {entry}, it must be uint32", entry.start)
    alignment = metadata[ALIGNMENT_KEY]
    if alignment.bit_count() != 1 or alignment > MAX_ALIGNMENT:
        cursor.refuse(
            f"{ALIGNMENT_KEY!r} is {alignment}, it must be a power of two and at most"
            f" {MAX_ALIGNMENT}",
            entry.start,
        )
    return alignment
