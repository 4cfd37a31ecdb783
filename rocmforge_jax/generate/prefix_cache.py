"""What is kept of one text for the next one, if it begins like that text."""

import collections.abc
import warnings

import jax

from rocmforge_jax.generate.snapshots import Snapshots, snapshot_size
from rocmforge_jax.nn import Cache

#: Tokens that a prompt must share with the last text for the cache of that text to be reused.
SMALLEST_PREFIX = 16


class PrefixCache:
    """The cache of the last text, for a next prompt that begins like that text.

    Attributes:
        snapshot_bytes: most bytes of the snapshots of one text.
    """

    def __init__(self, snapshot_bytes: int = 0):
        self.snapshot_bytes, self._warned = snapshot_bytes, False
        self.forget()

    def __repr__(self):
        return f"<PrefixCache: {len(self._text)} tokens>"

    def keep(self, text: list[int], cache: Cache, snapshots: Snapshots | None = None) -> None:
        """Keeps the cache of one sequence.

        Args:
            text: its tokens. The cache may lack the last few of them, or hold some more.
            cache: of batch 1.
            snapshots: those that `take` returned for this text.
        """
        self._text, self._cache, self._snapshots = text, cache, snapshots or self._no_snapshots()

    def forget(self) -> None:
        """Drops the cache."""
        self._text, self._cache, self._snapshots = [], None, self._no_snapshots()

    def _no_snapshots(self) -> Snapshots:
        return Snapshots(self.snapshot_bytes)

    def check_snapshots(self, cache: Cache) -> None:
        """Warns, once, if a snapshot of a cache is too large; not where the bound is 0 bytes."""
        size = snapshot_size(cache)
        if self._warned or not 0 < self.snapshot_bytes < size:
            return
        self._warned = True
        warnings.warn(
            f"a snapshot of this model takes {size} bytes, the bound is {self.snapshot_bytes}: a"
            " next prompt that begins like this text may be computed as a whole. Raise"
            " snapshot_bytes to avoid that",
            stacklevel=2,
        )

    def common(self, prompt: collections.abc.Sequence[int]) -> int:
        """Tokens at the start of a prompt that the cache holds."""
        if self._cache is None or _is_donated(self._cache):
            return 0
        held = min(len(prompt), len(self._text), int(self._cache.lengths_B[0]))
        return next((i for i in range(held) if prompt[i] != self._text[i]), held)

    def take(self, prompt: collections.abc.Sequence[int]) -> tuple[Cache | None, int, Snapshots]:
        """Gives the cache away, rewound to the start of a prompt.

        Where a layer cannot be rewound so far, the cache is as it was at the last snapshot before.

        Returns:
            (cache, its tokens, snapshots to go on with), or (None, 0, new snapshots) if the cache
            holds less than `SMALLEST_PREFIX` tokens of the prompt. At least the last token of the
            prompt is left to be computed.
        """
        known, cache, snapshots = self.common(prompt), self._cache, self._snapshots
        self.forget()
        known = min(known, len(prompt) - 1)
        if cache is not None and known >= SMALLEST_PREFIX:
            cache, known = snapshots.rewind(cache, known)
            if cache is not None and known >= SMALLEST_PREFIX:
                return cache, known, snapshots
        return None, 0, self._no_snapshots()


def _is_donated(cache: Cache) -> bool:
    """Whether an interrupted dispatch took the arrays of the cache with it."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
