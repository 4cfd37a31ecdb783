"""The error for invalid files, and helpers that bound the length of messages."""

import contextlib
from collections.abc import Iterator, Sequence

#: The most characters of a name, and the most entries of a list, that a message quotes.
MOST_CHARACTERS, MOST_ENTRIES = 80, 20


class GGUFError(ValueError):
    """Raised for a file that is not valid GGUF.

    The message contains the file, the fault, the byte offset, and the actual and allowed numbers.
    """


@contextlib.contextmanager
def about_file(path: object) -> Iterator[None]:
    """Puts a path before the message of a GGUFError that is raised inside the context."""
    try:
        yield
    except GGUFError as error:
        raise type(error)(f"{path}: {error}") from error


def quoted(value: object) -> str:
    """Returns repr(value), shortened like `shortened` if it is long."""
    return shortened(repr(value), MOST_CHARACTERS)


def shortened(text: str, most: int = 300) -> str:
    """Returns a text, such as a path, cut after `most` characters with its full length appended."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def listed(entries: Sequence[str], separator: str = "; ", most: int = MOST_ENTRIES) -> str:
    """Joins the first `most` entries and appends how many more there are."""
    left = len(entries) - most
    more = [f"and {left:,} more"] if left > 0 else []
    return separator.join([*entries[:most], *more])
