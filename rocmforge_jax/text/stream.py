"""Text as it is generated: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Iterable, Iterator

from rocmforge_jax.arguments import flag


class ByteStream:
    """Token ids in, bytes out.

    Special tokens may be left out; the space that encoding puts before a text is dropped again.
    """

    def __init__(self, tokenizer, *, skip_special: bool = False, after: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self._skip_special = flag("skip_special", skip_special)
        *_, last = (None, *_checked_ids("after", after))
        self._at_start = last is None or tokenizer.is_special(last)

    def push(self, ids: Iterable[int]) -> bytes:
        """Takes the next tokens and returns their bytes."""
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
    """Token ids in, text out: the pieces joined are `Tokenizer.decode` of all ids.

    Made by `Tokenizer.stream`.
    """

    def __init__(self, pieces: ByteStream):
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that is complete with these ids.

        A character that still lacks bytes waits for the next.
        """
        return self._utf8.decode(self._pieces.push(ids))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Text in, text out, up to the first stop string.

    The string that is complete first wins, the longer of two that end together. Text that may yet
    become a stop string is held back, so what `push` returns does not depend on how the text was
    cut. `hit` is the stop string found, None before.
    """

    def __init__(self, stops: str | Iterable[str] | None):
        stops = () if stops is None else stops
        if not isinstance(stops, Iterable):
            raise TypeError(f"stop must be a string or a list of strings, got {stops!r}")
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        if not all(isinstance(stop, str) and stop for stop in self.stops):
            raise ValueError(
                f"stop strings are strings of at least one character, got {list(self.stops)}"
            )
        self.hit: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """The text that certainly comes before any stop string; "" once one was hit."""
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
        """The text held back, when no more comes."""
        held, self._held = self._held, ""
        return held

    def _hold(self, text: str) -> int:
        """How many characters at the end of `text` could be the start of a stop string."""
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
