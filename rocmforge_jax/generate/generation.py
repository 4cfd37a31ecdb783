"""The texts of one call of `Engine.generate`, while they are generated."""

import collections.abc
from collections.abc import Iterator

from rocmforge_jax.generate.sequence import Generated, Sequence


class Generation(Iterator[list[Generated]]):
    """Sequences that are being generated. Yields one `Generated` per sequence after each dispatch.

    `added` is the same iterator for callers with many sequences: it yields only those that got
    tokens, by number.
    """

    def __init__(
        self,
        sequences: collections.abc.Sequence[Sequence],
        added: collections.abc.Generator[dict[int, Generated]],
    ):
        self.added, self._sequences = added, sequences

    def __next__(self) -> list[Generated]:
        added = next(self.added)
        return [
            added.get(number) or Generated([], [], one.finish_reason)
            for number, one in enumerate(self._sequences)
        ]

    def stop(self, number: int) -> None:
        """Ends a sequence, for example at a stop string. Its slot becomes free for the next one."""
        self._sequences[number].stop()

    def close(self) -> None:
        """Ends all sequences."""
        self.added.close()
