"""What is wrong with a file, in messages of bounded length."""

from collections.abc import Sequence

#: Characters of a name, and entries of a list, that a message quotes.
MOST_CHARACTERS, MOST_ENTRIES = 80, 20


class GGUFError(ValueError):
    """Raised for a file that is not valid GGUF.

    The message gives the file, what is wrong, the byte, and both numbers.
    """


def quoted(value: object) -> str:
    """Returns repr(value); of a long one the beginning, and how long it is."""
    return shortened(repr(value), MOST_CHARACTERS)


def shortened(text: str, most: int = 300) -> str:
    """Returns a text, such as a path; of a long one the beginning, and how long it is."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def listed(entries: Sequence[str], separator: str = "; ", most: int = MOST_ENTRIES) -> str:
    """Joins entries; of a long list the first ones, and how many are left out."""
    left = len(entries) - most
    more = [f"and {left:,} more"] if left > 0 else []
    return separator.join([*entries[:most], *more])
