"""Reads the metadata and the tensor table of a file.

Every length is compared with the bytes left before anything is allocated.
"""

import struct
from typing import NoReturn

from rocmforge_jax.gguf.errors import GGUFError
from rocmforge_jax.gguf.limits import MAX_HEADER_BYTES, MAX_STRINGS

_WINDOW = 2**16


class HeaderCursor:
    """A read position in the part of a file before the tensor data.

    It reads in windows of 64 KiB, so its memory does not grow with the file.

    Attributes:
        size: The size of the file in bytes.
        position: The offset of the next byte to read.
        order: The byte order for the struct module, "<" or ">".
    """

    def __init__(self, file, size, path):
        self.size, self.path = size, path
        self.position, self.order = 0, "<"
        self._file, self._window, self._base = file, b"", 0
        self._strings = 0

    def refuse(self, message, at=None) -> NoReturn:
        """Raises GGUFError with `message` and a byte offset, by default the current position."""
        raise GGUFError(f"{self.path}: {message} (at byte {self.position if at is None else at})")

    def take(self, nbytes, what) -> bytes:
        """Returns the next `nbytes` bytes; `what` names them in the error if they are missing."""
        self.expect(nbytes, what)
        start = self._fill(nbytes)
        self.position += nbytes
        return self._window[start : start + nbytes]

    def numbers(self, codes, what) -> tuple:
        """Returns the next numbers for a format of the struct module, such as "I" or "4QIQ"."""
        codes = self.order + codes
        return struct.unpack(codes, self.take(struct.calcsize(codes), what))

    def number(self, code, what):
        """Returns the next number."""
        return self.numbers(code, what)[0]

    def string(self, what, limit) -> bytes:
        """Returns the next string: a uint64 length of at most `limit`, then that many bytes."""
        length = self.number("Q", f"the length of {what}")
        if length > limit:
            self.refuse(f"{what} has {length} bytes, the most is {limit}", self.position - 8)
        return self.take(length, what)

    def text(self, what, limit) -> str:
        """Returns the next string, which must be UTF-8 without zero bytes.

        ggml cuts a name at its first zero byte.
        """
        start = self.position
        raw = self.string(what, limit)
        try:
            decoded = raw.decode()
        except UnicodeDecodeError as error:
            self.refuse(
                f"{what} is not UTF-8: {raw[:64]!r}: {error.reason} at its byte {error.start} of"
                f" {len(raw)}",
                start,
            )
        if "\0" in decoded:
            self.refuse(
                f"{what} has a zero byte at {raw.index(0)} of {len(raw)}: {raw[:64]!r}", start
            )
        return decoded

    def skip(self, nbytes, what):
        """Skips `nbytes` bytes."""
        self.expect(nbytes, what)
        self.position += nbytes

    def skip_strings(self, count, what):
        """Skips `count` strings.

        The inner loop runs for each of the 300,000 strings of a large vocabulary, so it is kept
        short.
        """
        self._strings += count
        if self._strings > MAX_STRINGS:
            self.refuse(
                f"{what} has {count} strings, which makes {self._strings} in this file, the most is"
                f" {MAX_STRINGS}"
            )
        left, unpack = count, struct.Struct(self.order + "Q").unpack_from
        while left:
            self.expect(8 * left, f"{what}, with {left} more strings,")
            at, window, last, length = self._fill(8), self._window, len(self._window) - 8, 0
            while left and at <= last:
                (length,) = unpack(window, at)
                at += 8 + length
                left -= 1
            self.position = self._base + at - length
            self.expect(length, f"string {count - left - 1} of {what}")
            self.position += length

    def expect(self, nbytes, what):
        """Raises GGUFError if fewer than `nbytes` bytes are left, without reading them."""
        if nbytes > self.size - self.position:
            self.refuse(
                f"{what} needs {nbytes} bytes, {self.size - self.position} are left: the file is"
                " cut short or damaged, download it again"
            )
        if self.position + nbytes > MAX_HEADER_BYTES:
            self.refuse(
                f"{what} ends at byte {self.position + nbytes}, metadata and tensor table may have"
                f" {MAX_HEADER_BYTES}"
            )

    def _fill(self, nbytes) -> int:
        """Loads `nbytes` bytes from the position into the window and returns their index there."""
        start = self.position - self._base
        if start + nbytes > len(self._window):
            self._file.seek(self.position)
            self._window, self._base, start = (
                self._file.read(max(nbytes, _WINDOW)),
                self.position,
                0,
            )
            if len(self._window) < nbytes:
                self.refuse(
                    f"the file shrank while it was read: {nbytes} bytes wanted, {len(self._window)}"
                    " found"
                )
        return start
