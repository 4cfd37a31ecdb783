"""Finds lone surrogates: characters of Python strings that valid text does not contain.

The package inserts some of them into texts as marks, so input that contains one is rejected.
"""

import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(what: str, text: str, error: type[ValueError] = ValueError) -> None:
    """Raises an error if a text contains a lone surrogate.

    Args:
        what: The name of the text in the message.
        text: The text.
        error: The class of the exception.

    Raises:
        ValueError: The text contains one; the message has its position.
    """
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise error(
            f"{what} has the lone surrogate U+{ord(found[0]):04X} at character {found.start()},"
            " which no valid text has: decode bytes as UTF-8 with errors='replace'"
        )


def check_data(what: str, data: Any, error: type[ValueError] = ValueError) -> None:
    """Raises an error if a string or a key in JSON data contains a lone surrogate.

    Args:
        what: The name of the data in the message.
        data: The data.
        error: The class of the exception.

    Raises:
        ValueError: A string contains one; the message has its place in the data and its position.
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
