"""Replaces characters with SentencePiece's compiled table, `precompiled_charsmap`."""

from collections.abc import Iterator

import numpy as np

from rocmforge_jax.gguf import GGUFError

_KEY = "tokenizer.ggml.precompiled_charsmap"


class Charsmap:
    """A table of texts and their replacements. The longest match at a position is replaced.

    `data` consists of the trie's size in bytes (little endian), the trie, and the zero-terminated
    replacements. The trie is a double array of 32-bit nodes:

    - Bits 0 to 7 are the byte that leads to the node.
    - Bit 8 is set if a text of the table ends here.
    - Bits 10 to 30 are the offset of the children, in steps of 256 if bit 9 is set.

    The child for a zero byte contains the position of the replacement.
    """

    def __init__(self, data: bytes):
        size = int.from_bytes(data[:4], "little")
        if 4 + size >= len(data):
            raise GGUFError(
                f"{_KEY} has {len(data)} bytes: too few for its trie of {size} bytes, the length of"
                " that and replacements"
            )
        self._nodes: list[int] = np.frombuffer(data, "<u4", size // 4, 4).tolist()
        self._replacements = data[4 + size :] + b"\0"
        self._characters = _Characters(self)

    def replace(self, text: str) -> str:
        """Replaces all matches in a text, from the left."""
        done, end = [], 0
        for at in self._starts(text):
            if at < end:
                continue
            length, replacement = self.longest(text, at)
            if length > 1:
                done += (text[end:at].translate(self._characters), replacement)
                end = at + length
        return "".join((*done, text[end:].translate(self._characters)))

    def _starts(self, text: str) -> list[int]:
        """Returns the positions where a match of more than one character may start."""
        pairs = set(zip(text, text[1:]))
        begin = {pair for pair in pairs if len(list(self._walk("".join(pair), 0))) == 2}
        return [at for at, pair in enumerate(zip(text, text[1:])) if pair in begin] if begin else []

    def longest(self, text: str, at: int) -> tuple[int, str]:
        """Returns the length and the replacement of the longest match at `at`, or (0, "")."""
        length, place = 0, 0
        for walked, found in enumerate(self._walk(text, at), 1):
            if found is not None:
                length, place = walked, found
        if not length:
            return 0, ""
        if place >= len(self._replacements):
            raise GGUFError(
                f"{_KEY} has no replacement at {place} of {len(self._replacements) - 1} bytes"
            )
        replacement = self._replacements[place : self._replacements.index(0, place)]
        return length, replacement.decode("utf-8", "replace")

    def _walk(self, text: str, at: int) -> Iterator[int | None]:
        """Walks the trie along the characters from `at`, until it has no matching node.

        Yields, after each character, the position of the replacement, or None if no text ends
        there.
        """
        node, found = self._children(0), None
        for end in range(at, len(text)):
            for byte in text[end].encode():
                child = node ^ byte
                if not byte or child >= len(self._nodes) or self._byte(child) != byte:
                    return
                node = child ^ self._children(child)
                ends = self._nodes[child] & 1 << 8 and node < len(self._nodes)
                found = self._nodes[node] & 0x7FFFFFFF if ends else None
            yield found

    def _children(self, node: int) -> int:
        return (self._nodes[node] >> 10) << ((self._nodes[node] & 1 << 9) >> 6)

    def _byte(self, node: int) -> int:
        return self._nodes[node] & (1 << 31 | 0xFF)


class _Characters(dict[int, str]):
    """A table for `str.translate` that replaces single characters."""

    def __init__(self, charsmap: Charsmap):
        self._charsmap = charsmap

    def __missing__(self, code: int) -> str:
        length, replacement = self._charsmap.longest(chr(code), 0)
        self[code] = replacement if length else chr(code)
        return self[code]
