"""Chooses tensors by patterns of their names in the file."""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable

from rocmforge_jax.gguf.errors import listed, shortened

#: A pattern of names, several of them, or True for all and False or None for none.
Patterns = str | Iterable[str] | bool | None


def checked(patterns: Patterns) -> bool | tuple[str, ...]:
    """Returns patterns as a tuple or a bool; raises TypeError for anything else."""
    if patterns is None or isinstance(patterns, bool):
        return bool(patterns)
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, Iterable):
        raise TypeError(
            "patterns of tensor names are a str, several of them, True or None, got a"
            f" {type(patterns).__name__}"
        )
    given = tuple(given)
    for pattern in given:
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern of tensor names is a str, got {type(pattern).__name__}")
    return given


def matching(patterns: Patterns, names: Collection[str]) -> set[str]:
    """Returns the names that match any of the patterns.

    Args:
        patterns: Shell patterns of tensor names, such as "blk.*.attn_q" or "*.ffn_*.weight". The
            ending ".weight" may be left out. True stands for all names, False and None for none.
        names: Names of tensors, such as "blk.0.attn_q.weight".

    Raises:
        ValueError: A pattern matches nothing. The message lists names of the file.
    """
    wanted = checked(patterns)
    if isinstance(wanted, bool):
        return set(names) if wanted else set()
    found = set()
    for pattern in wanted:
        matches = {
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(name.removesuffix(".weight"), pattern)
        }
        if not matches:
            raise ValueError(_no_match(pattern, names))
        found |= matches
    return found


def _no_match(pattern: str, names: Collection[str]) -> str:
    """Returns a message with the names that there are, the same ones of all layers together."""
    kinds = {re.sub(r"\bblk\.\d+\.", "blk.*.", name).removesuffix(".weight") for name in names}
    kind = re.sub(r"\bblk\.[^.]+\.", "blk.*.", pattern[:300]).removesuffix(".weight")
    near = difflib.get_close_matches(kind, sorted(kinds), 1)
    hint = f": did you mean {near[0]!r}? There are" if near else "; there are"
    return f"no tensor is named like {shortened(pattern)!r}{hint} {listed(sorted(kinds), ', ')}"
