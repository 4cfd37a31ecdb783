"""The key-value pairs of a file, decoded on first access."""

import difflib
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from rocmforge_jax.gguf.entries import Entry
from rocmforge_jax.gguf.errors import GGUFError, quoted
from rocmforge_jax.gguf.mapped import MappedFile
from rocmforge_jax.gguf.overview import metadata_html


class Metadata(Mapping):
    """A read-only mapping from key to value, in file order.

    Each value is decoded on first access and cached. Numbers and booleans are Python objects. An
    array of numbers is a read-only NumPy array of its type, and an array of strings is a tuple. A
    string that is not UTF-8 stays bytes.

    Reading a value raises GGUFError if a boolean is neither 0 nor 1, or if the file was changed
    after it was opened.
    """

    def __init__(self, entries: dict[str, Entry], mapped: "MappedFile | _Copy", order: str):
        self._entries, self._mapped, self._order = entries, mapped, order
        self._values = {}

    def __getitem__(self, key: str):
        if key not in self._values:
            self._values[key] = self._decode(key, self.entry(key))
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key) -> bool:
        return key in self._entries

    def __repr__(self):
        return f"<Metadata of {self._mapped.path}: {len(self)} keys>"

    def _repr_html_(self) -> str:
        return metadata_html(self)

    def get(self, key: str, default=None):
        """Returns the value of a key, or `default` if the file does not have the key."""
        return self[key] if key in self else default

    def entry(self, key: str) -> Entry:
        """Returns type, length and place of a value without decoding it.

        Raises:
            KeyError: The key is missing; the message lists the nearest keys.
        """
        if key not in self._entries:
            near = difflib.get_close_matches(str(key), self._entries, n=3, cutoff=0.5)
            raise KeyError(
                f"{self._mapped.path} has no key {quoted(key)}"
                + (f"; the nearest are {', '.join(near)}" if near else "")
            )
        return self._entries[key]

    def describe(self, key: str) -> str:
        """Returns the type of a value, such as "uint32" or "array[string] x 151936".

        The value is not decoded.
        """
        return str(self.entry(key))

    def detached(self) -> "Metadata":
        """Returns the same keys with a copy of their bytes, which needs the file no longer."""
        entries = self._entries.values()
        start = min((entry.start for entry in entries), default=0)
        stop = max((entry.stop for entry in entries), default=0)
        raw = self._mapped.read(start, stop)
        return Metadata(self._entries, _Copy(self._mapped.path, start, raw), self._order)

    def typed(self, key: str):
        """Returns a value for `write_gguf`, which keeps the type that the number has in the file.

        An array of strings is a tuple, a single number a NumPy scalar.
        """
        entry, value = self.entry(key), self[key]
        if entry.type == "string" or entry.count is not None:
            return value
        return np.dtype(entry.type).type(value)

    def _decode(self, key, entry):
        raw = self._mapped.read(entry.start, entry.stop)
        if entry.type == "string":
            strings = self._strings(key, raw, entry)
            return strings[0] if entry.count is None else strings
        if entry.type == "bool":
            self._check_booleans(key, raw, entry)
        if entry.count is None:
            return struct.unpack(self._order + entry.code, raw)[0]
        array = np.frombuffer(raw, self._order + entry.code)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array

    def _strings(self, key, raw, entry):
        pieces, at, unpack = [], 0, struct.Struct(self._order + "Q").unpack_from
        try:
            for _ in range(1 if entry.count is None else entry.count):
                start = at + 8
                at = start + unpack(raw, at)[0]
                pieces.append(raw[start:at])
        except (struct.error, OverflowError):
            at = None
        if at != len(raw):
            self._refuse(
                key,
                entry,
                f"its strings no longer fill its {len(raw)} bytes: the file was changed after it"
                " was opened",
            )
        try:
            return tuple([piece.decode() for piece in pieces])
        except UnicodeDecodeError:
            return tuple([_text_or_bytes(piece) for piece in pieces])

    def _check_booleans(self, key, raw, entry):
        values = np.frombuffer(raw, np.uint8)
        if (wrong := np.flatnonzero(values > 1)).size:
            self._refuse(
                key,
                entry,
                f"a boolean is the byte 0 or 1, byte {wrong[0]} of {len(raw)} is"
                f" {values[wrong[0]]}",
            )

    def _refuse(self, key, entry, message):
        raise GGUFError(f"{self._mapped.path}: {quoted(key)}: {message} (at byte {entry.start})")


class _Copy:
    """Bytes of a file from `start` on, read as those of a `MappedFile` are."""

    def __init__(self, path, start: int, raw: bytes):
        self.path, self._start, self._raw = path, start, raw

    def read(self, start: int, stop: int) -> bytes:
        return self._raw[start - self._start : stop - self._start]


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
