"""The texts of one call of `Engine.generate`, while they are generated."""

import collections.abc
from collections.abc import Generator

from rocmforge_jax.arguments import integer
from rocmforge_jax.generate.sequence import Generated, Sequence


class Generation(Generator[list[Generated], None, None]):
    """Sequences that are being generated. Yields one `Generated` per sequence after each dispatch.

    `added` is the same iterator for callers with many sequences: it yields only those that got
    tokens, by number.
    """

    def __init__(
        self,
        sequences: collections.abc.Sequence[Sequence],
        added: Generator[dict[int, Generated], None, None],
    ):
        self.added, self._sequences = added, sequences

    def __repr__(self):
        ended = sum(one.finish_reason is not None for one in self._sequences)
        return f"<Generation: {ended} of {len(self._sequences)} sequences ended>"

    def send(self, value=None, /) -> list[Generated]:
        """Waits for the next dispatch, like `next`."""
        added = self.added.send(value)
        return [
            added.get(number) or Generated([], [], one.finish_reason)
            for number, one in enumerate(self._sequences)
        ]

    def throw(self, *error) -> list[Generated]:
        """Ends all sequences with an error."""
        self.added.throw(*error)
        raise StopIteration

    def stop(self, number: int) -> None:
        """Ends a sequence, for example at a stop string. Its slot becomes free for the next one.

        Args:
            number: The number of the sequence. With several samples, those of the first prompt come
                first.
        """
        self._sequences[integer("number", number, 0, len(self._sequences) - 1)].stop()

    def close(self) -> None:
        """Ends all sequences."""
        self.added.close()
