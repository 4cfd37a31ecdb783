"""What is kept of one text for the next one, if it begins like that text."""

import collections.abc

import jax

from rocmforge_jax.nn import Cache

#: Tokens that a prompt must share with the last text for the cache of that text to be reused.
SMALLEST_PREFIX = 16


class PrefixCache:
    """The cache of the last text, for a next prompt that begins like that text."""

    def __init__(self):
        self.forget()

    def keep(self, text: list[int], cache: Cache) -> None:
        """Keeps the cache of one sequence.

        Args:
            text: its tokens. The cache may lack the last few of them, or hold some more.
            cache: of batch 1.
        """
        self._text, self._cache = text, cache

    def forget(self) -> None:
        """Drops the cache."""
        self._text, self._cache = [], None

    def common(self, prompt: collections.abc.Sequence[int]) -> int:
        """Tokens at the start of a prompt that the cache holds."""
        if self._cache is None or _is_donated(self._cache):
            return 0
        held = min(len(prompt), len(self._text), int(self._cache.lengths_B[0]))
        return next((i for i in range(held) if prompt[i] != self._text[i]), held)

    def take(self, prompt: collections.abc.Sequence[int]) -> tuple[Cache | None, int]:
        """Gives the cache away, rewound to the start of a prompt.

        Returns (cache, its tokens), or (None, 0) where less than `SMALLEST_PREFIX` tokens are
        common. At least the last token of the prompt is left to be computed.
        """
        known, cache = min(self.common(prompt), len(prompt) - 1), self._cache
        if cache is not None:
            enough = known >= SMALLEST_PREFIX
            cache = cache.rewound(int(cache.lengths_B[0]), known) if enough else None
        self.forget()
        return cache, 0 if cache is None else known


def _is_donated(cache: Cache) -> bool:
    """Whether an interrupted dispatch took the arrays of the cache with it."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
