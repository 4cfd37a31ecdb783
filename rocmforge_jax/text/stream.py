"""Decodes generated tokens to text incrementally and cuts it at stop strings."""

import codecs
from collections.abc import Iterable, Iterator, Mapping

from rocmforge_jax.arguments import flag


class ByteStream:
    """Converts token ids to bytes incrementally.

    It drops the space that encoding inserts before a text. Control tokens can be left out.
    """

    def __init__(self, tokenizer, *, skip_special: bool = False, after: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self._skip_special = flag("skip_special", skip_special)
        *_, last = (None, *_checked_ids("after", after))
        self._at_start = last is None or tokenizer.is_special(last)

    def push(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of the next tokens."""
        return b"".join(map(self._next, _checked_ids("ids", ids)))

    def _next(self, id: int) -> bytes:
        tokenizer = self._tokenizer
        piece = tokenizer.piece(id)
        if tokenizer.is_special(id):
            self._at_start = True
            return b"" if self._skip_special and tokenizer.is_control(id) else piece
        if self._at_start and piece:
            self._at_start = False
            return piece.removeprefix(b" ") if tokenizer.add_space_prefix else piece
        return piece


def _checked_ids(name: str, ids: Iterable[int]) -> Iterator[int]:
    try:
        return iter(ids)
    except TypeError:
        raise TypeError(
            f"{name} must be a list of token ids, got {type(ids).__name__} {ids!r}"
        ) from None


class TextStream:
    """Converts token ids to text incrementally.

    The concatenated pieces equal `Tokenizer.decode` of all ids. Created by `Tokenizer.stream`.
    """

    def __init__(self, pieces: ByteStream):
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Returns the text that these ids complete.

        The bytes of an incomplete character are kept for the next call.
        """
        return self._utf8.decode(self._pieces.push(ids))

    def flush(self) -> str:
        """Returns the rest at the end: U+FFFD if a character is still incomplete, otherwise ""."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Passes text through, up to the first stop string.

    The stop string that is complete first wins; if two end at the same place, the longer one. Text
    that could be the start of a stop string is held back. So the output does not depend on how the
    text was split.

    Attributes:
        stops: The stop strings.
        hit: The stop string that was found, or None.
    """

    def __init__(self, stops: str | Iterable[str] | None):
        stops = () if stops is None else stops
        if isinstance(stops, bytes | Mapping) or not isinstance(stops, Iterable):
            raise TypeError(f"stop must be a string or a list of strings, got {stops!r}")
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str):
                raise TypeError(f"stop must be a string or a list of strings, got {stop!r} in it")
            if not stop:
                raise ValueError("stop strings have at least one character, got ''")
        self.hit: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """Returns the text that certainly precedes any stop string, or "" after a hit."""
        if self.hit is not None:
            return ""
        text = self._held + text
        found = [
            (start + len(stop), start, stop)
            for stop in self.stops
            if (start := text.find(stop)) >= 0
        ]
        if found:
            _, end, self.hit = min(found)
            self._held = ""
        else:
            end = len(text) - self._hold(text)
            self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Returns the text held back. Call it after the last `push`."""
        held, self._held = self._held, ""
        return held

    def _hold(self, text: str) -> int:
        """Returns how many characters at the end of `text` could start a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        starts = range(max(len(text) - longest, 0), len(text))
        return next(
            (
                len(text) - i
                for i in starts
                if any(stop.startswith(text[i:]) for stop in self.stops)
            ),
            0,
        )
