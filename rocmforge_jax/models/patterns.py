"""Chooses tensors by patterns of their names in the file."""

import fnmatch
from collections.abc import Collection, Iterable

from rocmforge_jax.gguf.errors import listed, shortened

#: A pattern of names, several of them, or True for all and False or None for none.
Patterns = str | Iterable[str] | bool | None


def matching(patterns: Patterns, names: Collection[str]) -> set[str]:
    """Returns the names that match any of the patterns.

    Args:
        patterns: Shell patterns of tensor names, such as "blk.*.attn_q" or "*.ffn_*.weight". The
            ending ".weight" may be left out. True stands for all names, False and None for none.
        names: Names of tensors, such as "blk.0.attn_q.weight".

    Raises:
        ValueError: A pattern matches nothing, with names that there are.
    """
    if patterns is None or isinstance(patterns, bool):
        return set(names) if patterns else set()
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"a pattern of tensor names is a str, got {type(pattern).__name__}")
        matches = {
            name
            for name in names
            if fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(name.removesuffix(".weight"), pattern)
        }
        if not matches:
            raise ValueError(
                f"no tensor is named like {shortened(pattern)!r}; there are"
                f" {listed(sorted(names), ', ')}"
            )
        found |= matches
    return found
