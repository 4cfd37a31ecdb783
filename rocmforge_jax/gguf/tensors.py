"""Reads the tensor table of a file and checks it against the file's size."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.formats import Format
from rocmforge_jax.gguf.byte_order import to_little_endian
from rocmforge_jax.gguf.cursor import HeaderCursor
from rocmforge_jax.gguf.errors import listed, quoted
from rocmforge_jax.gguf.limits import MAX_DIMS, MAX_INT64, MAX_NAME_BYTES, MAX_TENSORS
from rocmforge_jax.gguf.mapped import MappedFile
from rocmforge_jax.gguf.overview import tensors_html

_SMALLEST_ENTRY = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True, repr=False)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: The tensor's name.
        shape: The row-major shape, which is the reverse of GGUF's dims.
        format: The format of the data.
        offset: The offset of the first byte in the file `path`.
        nbytes: The size of the data in bytes.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int
    _mapped: MappedFile = field(compare=False)
    _big_endian: bool = field(compare=False)

    @property
    def path(self):
        """The file that contains the tensor, one of several for a split model."""
        return self._mapped.path

    @property
    def data(self) -> np.ndarray:
        """The data, little endian, as read-only uint8 [*shape[:-1], row bytes].

        It is a view on the mapped file, or a copy if the file is big-endian.

        Raises:
            GGUFError: The file was truncated after it was opened.
        """
        blocks = self._mapped.view(self.offset, self.offset + self.nbytes)
        if self._big_endian:
            blocks = to_little_endian(blocks, self.format)
        return blocks.reshape(*self.shape[:-1], self.format.row_bytes(self.shape[-1]))

    def forget(self) -> None:
        """Releases the memory pages that reading `data` occupied.

        Arrays on them stay valid: the pages are read from the file again.
        """
        self._mapped.forget(self.offset, self.offset + self.nbytes)

    def __repr__(self):
        return (
            f"TensorInfo({self.name!r}, {self.format} {list(self.shape)}, {self.nbytes} bytes at"
            f" {self.offset})"
        )


class Tensors(Mapping[str, TensorInfo]):
    """A read-only mapping from the name of a tensor to its TensorInfo, in file order."""

    def __init__(self, items: Iterable[tuple[str, TensorInfo]]):
        self._items = dict(items)

    def __getitem__(self, name: str) -> TensorInfo:
        if name in self._items:
            return self._items[name]
        near = difflib.get_close_matches(str(name), self._items, n=3, cutoff=0.5)
        raise KeyError(
            f"no tensor {quoted(name)}" + (f"; the nearest are {', '.join(near)}" if near else "")
        )

    def get(self, name: str, default=None):
        """Returns a tensor, or `default` if the file does not have it."""
        # Mapping's method would look for the nearest names each time.
        return self._items.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name) -> bool:
        return name in self._items

    def __repr__(self):
        nbytes = sum(tensor.nbytes for tensor in self.values())
        return f"<{len(self)} tensors of {nbytes:,} bytes: {listed(list(self), ', ', most=3)}>"

    def _repr_html_(self) -> str:
        return tensors_html(self)


def read_tensors(
    cursor: HeaderCursor, count: int, alignment: int, mapped: MappedFile
) -> dict[str, TensorInfo]:
    """Reads the tensor table at the cursor and returns the tensors by name, in file order.

    Args:
        cursor: A cursor at the start of the table.
        count: The number of tensors.
        alignment: The alignment of the tensor data, in bytes.
        mapped: The mapped file.

    Raises:
        GGUFError: An entry is invalid, or its data is unaligned, outside the file or overlaps
            another tensor's data.
    """
    if count > MAX_TENSORS:
        cursor.refuse(f"the header claims {count} tensors, the most is {MAX_TENSORS}", 8)
    cursor.expect(count * _SMALLEST_ENTRY, f"a table of {count} tensors")
    entries = {}
    for index in range(count):
        at = cursor.position
        name = cursor.text(f"the name of tensor {index}", MAX_NAME_BYTES)
        if name in entries:
            cursor.refuse(
                f"tensor {index} is named {name!r}, as the one at byte {entries[name].at}", at
            )
        entries[name] = _read_entry(cursor, name, at)
    data_start = -(-cursor.position // alignment) * alignment
    needed = data_start + max(
        (entry.offset + entry.nbytes for entry in entries.values()), default=0
    )
    for name, entry in entries.items():
        _check_place(cursor, name, entry, data_start, alignment, needed)
    _check_overlap(cursor, entries)
    big_endian = cursor.order == ">"
    return {
        name: TensorInfo(
            name,
            entry.shape,
            entry.format,
            data_start + entry.offset,
            entry.nbytes,
            mapped,
            big_endian,
        )
        for name, entry in entries.items()
    }


class _Entry(NamedTuple):
    """An entry of the table.

    Attributes:
        shape: The row-major shape.
        format: The format of the data.
        offset: The offset of the data from the start of the data section.
        nbytes: The size of the data in bytes.
        at: The offset of the entry itself in the file.
    """

    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int
    at: int


def _read_entry(cursor, name, at):
    rank = cursor.number("I", f"the rank of {name!r}")
    if not 1 <= rank <= MAX_DIMS:
        cursor.refuse(
            f"{name!r} has {rank} dimensions, a tensor has 1 to {MAX_DIMS}", cursor.position - 4
        )
    *dims, type_id, offset = cursor.numbers(
        f"{rank}QIQ", f"the dimensions, type and offset of {name!r}"
    )
    shape = tuple(reversed(dims))
    try:
        fmt = formats.get(type_id)
        row_bytes = fmt.row_bytes(shape[-1])
    except ValueError as error:
        cursor.refuse(f"{name!r}, {list(shape)}: {error}", at)
    # A dimension of 0 counts as 1, because it would hide an overflow of the others.
    if math.prod(size or 1 for size in shape[:-1]) * max(row_bytes, shape[-1], 1) > MAX_INT64:
        cursor.refuse(
            f"{name!r}, {fmt} {list(shape)}, has more than {MAX_INT64} elements or bytes", at
        )
    return _Entry(shape, fmt, offset, math.prod(shape[:-1]) * row_bytes, at)


def _check_place(cursor, name, entry, data_start, alignment, needed):
    if entry.offset % alignment:
        cursor.refuse(
            f"{name!r} has its data at offset {entry.offset}, not a multiple of the alignment"
            f" {alignment}",
            entry.at,
        )
    stop = data_start + entry.offset + entry.nbytes
    if stop > cursor.size:
        cursor.refuse(
            f"{name!r}, {entry.format} {list(entry.shape)}, has {entry.nbytes} bytes that end at"
            f" byte {stop}, the file has {cursor.size}: it is cut short or damaged."
            f" {needed - cursor.size:,} of {needed:,} bytes are missing: download it again",
            entry.at,
        )


def _check_overlap(cursor, entries):
    in_place = sorted(
        (entry.offset, entry.offset + entry.nbytes, name) for name, entry in entries.items()
    )
    for (start, stop, name), (next_start, next_stop, next_name) in pairwise(in_place):
        if next_start < stop:
            cursor.refuse(
                f"{next_name!r} has its data at {next_start} to {next_stop}, {name!r} at {start} to"
                f" {stop}: they overlap",
                entries[next_name].at,
            )
