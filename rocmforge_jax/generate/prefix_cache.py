"""The prefix cache: keeps the KV cache of the last text for a next prompt with the same start."""

import collections.abc
import threading
import warnings

import jax

from rocmforge_jax.generate.snapshots import Snapshots, snapshot_size
from rocmforge_jax.nn import Cache

#: The least number of tokens that a prompt must share with the last text to reuse its cache.
SMALLEST_PREFIX = 16


class PrefixCache:
    """The cache of the last text, for a next prompt with the same start.

    Threads may share it: a cache is given to one of them.

    Attributes:
        snapshot_bytes: The limit for the snapshots of one text, in bytes.
    """

    def __init__(self, snapshot_bytes: int = 0):
        self.snapshot_bytes, self._warned, self._lock = snapshot_bytes, False, threading.Lock()
        self._held = self._nothing()

    def __repr__(self):
        return f"<PrefixCache: {len(self._held[0])} tokens>"

    def keep(self, text: list[int], cache: Cache, snapshots: Snapshots | None = None) -> None:
        """Stores the cache of one sequence.

        Args:
            text: The tokens of the sequence. The cache may lack the last few of them, or contain
                some more.
            cache: The cache, of batch 1.
            snapshots: The snapshots that `take` returned for this text.
        """
        self._exchange((text, cache, snapshots or self._no_snapshots()))

    def forget(self) -> None:
        """Drops the cache."""
        self._exchange(self._nothing())

    def _exchange(self, held: tuple[list[int], Cache | None, Snapshots]):
        """Stores a text, its cache and its snapshots, and returns those from before."""
        with self._lock:
            before, self._held = self._held, held
        return before

    def _nothing(self) -> tuple[list[int], None, Snapshots]:
        return [], None, self._no_snapshots()

    def _no_snapshots(self) -> Snapshots:
        return Snapshots(self.snapshot_bytes)

    def check_snapshots(self, cache: Cache) -> None:
        """Warns, once, if a snapshot exceeds the limit. A limit of 0 bytes never warns."""
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
        """Returns how many tokens at the start of a prompt are in the cache."""
        text, cache, _ = self._held
        return _common(prompt, text, cache)

    def take(self, prompt: collections.abc.Sequence[int]) -> tuple[Cache | None, int, Snapshots]:
        """Removes the cache from this object and returns it, rewound to the start of a prompt.

        If a layer cannot be rewound that far, the state of the last earlier snapshot is used. At
        least the last token of the prompt remains to be computed.

        Returns:
            (the cache, its number of tokens, the snapshots to continue with). If fewer than
            `SMALLEST_PREFIX` tokens can be reused, it is (None, 0, new snapshots).
        """
        text, cache, snapshots = self._exchange(self._nothing())
        known = min(_common(prompt, text, cache), len(prompt) - 1)
        if cache is not None and known >= SMALLEST_PREFIX:
            cache, known = snapshots.rewind(cache, known)
            if cache is not None and known >= SMALLEST_PREFIX:
                return cache, known, snapshots
        return None, 0, self._no_snapshots()


def _common(prompt: collections.abc.Sequence[int], text: list[int], cache: Cache | None) -> int:
    """Returns how many tokens a prompt shares with the start of a text whose cache is usable."""
    if cache is None or _is_donated(cache):
        return 0
    held = min(len(prompt), len(text), int(cache.lengths_B[0]))
    return next((i for i in range(held) if prompt[i] != text[i]), held)


def _is_donated(cache: Cache) -> bool:
    """Returns whether an interrupted dispatch has consumed the arrays of the cache."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
