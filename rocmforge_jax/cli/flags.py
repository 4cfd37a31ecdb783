"""Replaces names of Python arguments by options of the command line in messages."""

import re

from rocmforge_jax.cli.common import SAMPLING

#: Arguments whose option has the same name, with hyphens.
_NAMES = "|".join((*SAMPLING, "context_length", "max_tokens", "pooling", "truncate", "window"))
#: An argument with a value ("pooling=", "truncate=True"), of which a message requires something
#: ("window must be"), or with an underscore. Parts of paths and of a file's keys are left alone.
_ARGUMENT = re.compile(
    rf"(?<![\w.'/-])(?P<name>{_NAMES})(?P<value>=True\b|= ?|(?![\w.'/-]))(?P<verb> must\b)?"
)


def in_flags(text: str) -> str:
    """Returns a message of the library with options in place of Python's arguments."""
    return _ARGUMENT.sub(_option, text)


def _option(match: re.Match) -> str:
    name, value, verb = match["name"], match["value"], match["verb"] or ""
    if not value and not verb and "_" not in name:
        return match[0]
    space = " " if value in ("=", "= ") else ""
    return f"--{name.replace('_', '-')}{space}{verb}"
