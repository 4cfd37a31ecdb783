"""Finds lone surrogates: characters of Python's strings that no valid text has.

The package puts some of its own into texts, as marks. So those of the caller are refused.
"""

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(what: str, text: str, error: type[ValueError] = ValueError) -> None:
    """Refuses a text with a lone surrogate.

    Args:
        what: What the message calls the text.
        text: The text.
        error: The class of the exception.

    Raises:
        ValueError: The text has one; with its position.
    """
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise error(
            f"{what} has the lone surrogate U+{ord(found[0]):04X} at character {found.start()},"
            " which no valid text has: decode bytes as UTF-8 with errors='replace'"
        )


def check_data(what: str, data: Any, error: type[ValueError] = ValueError) -> None:
    """Refuses JSON data in which a string, or a key, has a lone surrogate.

    Args:
        what: What the message calls the data.
        data: The data.
        error: The class of the exception.

    Raises:
        ValueError: A text has one; with its place in the data, and its position.
    """
    if isinstance(data, str):
        check_text(what, data, error)
    elif isinstance(data, dict):
        for key, item in data.items():
            if isinstance(key, str):
                check_text(f"a key in {what}", key, error)
            check_data(f"{key!r} of {what}", item, error)
    elif isinstance(data, list):
        for place, item in enumerate(data):
            check_data(f"item {place} of {what}", item, error)
