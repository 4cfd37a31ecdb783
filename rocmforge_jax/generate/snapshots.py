"""Snapshots of states that cannot be rewound, so that a next prompt can continue from them.

Keys and values of all tokens can be cut to any earlier length. A recurrent state cannot, and the
ring buffer of a sliding window only by a few tokens. For these, an earlier copy is restored. The
copies stay on the device.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rocmforge_jax.models.plan import available_bytes
from rocmforge_jax.nn import Cache, State

#: The default limit for the snapshots of a text: this many bytes, or at most 1/10 of free memory.
SNAPSHOT_BYTES, SNAPSHOT_SHARE = 512 * 2**20, 10
#: The number of generated tokens between two snapshots.
SNAPSHOT_INTERVAL = 64


def default_snapshot_bytes(device: Any = None) -> int:
    """Returns 512 MiB, or a tenth of the free memory of a device if that is less."""
    free = available_bytes(device)
    return SNAPSHOT_BYTES if free is None else min(SNAPSHOT_BYTES, max(0, free // SNAPSHOT_SHARE))


def snapshot_size(cache: Cache) -> int:
    """Returns the size of a snapshot of a cache in bytes, 0 if every state can be rewound."""
    return sum(state.nbytes for state in cache.perishable() if state is not None)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The states of one text at one length.

    Attributes:
        states: The state of each layer; None for a state that can be rewound to any length.
        length: The number of tokens in the states.
        most: The largest number of tokens that the states have ever contained; see
            `Cache.rewound`.
    """

    states: tuple[State | None, ...]
    length: int
    most: int

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(state.nbytes for state in self.states if state is not None)

    def rewound(self, length: int) -> tuple[State | None, ...] | None:
        """Returns the states with at most `length` tokens, or None if they cannot be rewound.

        A ring buffer can be rewound by a few tokens, a recurrent state not at all.
        """
        if length >= self.length:
            return self.states
        states = tuple(
            None if state is None else state.rewound(self.most, length) for state in self.states
        )
        lost = any(new is None for old, new in zip(self.states, states) if old is not None)
        return None if lost else states


class Snapshots:
    """The snapshots of one text, at increasing lengths, with a limit in bytes.

    If a new snapshot does not fit, the snapshot whose loss leaves the smallest gap is dropped. Two
    are exempt: the newest, from which the next message continues, and the one from which another
    answer to the same prompt continues. If only one of these fits, the latter is kept. Without it,
    a long conversation would be computed again; without the former, only the last answer.

    Attributes:
        most_bytes: The limit in bytes.
        prompt_tokens: The number of tokens of the last prompt.
    """

    def __init__(self, most_bytes: int, *, held: int = 0):
        """Creates an empty collection.

        Args:
            most_bytes: The limit in bytes.
            held: The largest number of tokens that the text's cache has ever contained.
        """
        self.most_bytes, self.prompt_tokens = most_bytes, 0
        self._taken: dict[int, Snapshot] = {}
        self._considered = 0  # the last length for which a snapshot was considered
        self._most = held  # the most tokens ever in the cache; see `Cache.rewound`

    @property
    def lengths(self) -> list[int]:
        """The lengths of the snapshots, in ascending order."""
        return sorted(self._taken)

    @property
    def nbytes(self) -> int:
        """The size of all snapshots in bytes."""
        return sum(snapshot.nbytes for snapshot in self._taken.values())

    def suit(self, cache: Cache) -> bool:
        """Returns whether a cache needs snapshots and one of them fits."""
        return 0 < snapshot_size(cache) <= self.most_bytes

    def due(self, length: int) -> bool:
        """Returns whether the text has grown by `SNAPSHOT_INTERVAL` since the last snapshot."""
        return length - self._considered >= SNAPSHOT_INTERVAL

    def take(self, cache: Cache, length: int) -> None:
        """Takes a snapshot if the cache needs one and it fits, without waiting for the device.

        Args:
            cache: The cache of one sequence. Its arrays are copied, so it may be donated
                afterwards.
            length: The number of tokens in it, more than at the last snapshot.
        """
        self._considered = length
        new = Snapshot(cache.perishable(), length, max(self._most, length))
        if self.suit(cache) and self._make_room(new):
            states = _copied(new.states, cache.length)
            self._taken[length] = dataclasses.replace(new, states=states)

    def split(self, cache: Cache, length: int, last: int) -> bool:
        """Returns whether a snapshot is needed `last` tokens before the end of a prompt.

        It is not needed if a snapshot at the end can be rewound that far.

        Args:
            cache: A cache with room for the prompt.
            length: The number of tokens of the prompt.
            last: The number of tokens to rewind.
        """
        at_the_end = Snapshot(cache.perishable(), length, length)
        return self.suit(cache) and at_the_end.rewound(length - last) is None

    def best(self, length: int) -> int:
        """Returns the largest length, up to `length`, that can be restored; 0 if there is none."""
        source = _closest(self._taken.values(), length)
        return 0 if source is None else min(source.length, length)

    def restore(self, cache: Cache, length: int) -> Cache | None:
        """Returns the cache at an earlier length, from a copy of a snapshot.

        Args:
            cache: A cache of the same text. Its states that can be rewound are reused.
            length: A length that `best` returned. For any other length the result may be None.
        """
        source = _closest(self._taken.values(), length)
        if source is None or source.length < length:
            return None
        states = _copied(source.rewound(length), cache.length)
        return cache.restored(states, self.held(cache), length)

    def rewind(self, cache: Cache, length: int) -> tuple[Cache | None, int]:
        """Rewinds a cache to a length, or to the closest earlier length that a snapshot allows.

        Later snapshots are dropped, because the text may continue differently.

        Args:
            cache: The cache of the text.
            length: The number of tokens to keep.

        Returns:
            (the cache, the number of tokens in it), or (None, 0) if nothing can be kept.
        """
        held = self.held(cache)
        rewound = cache.rewound(held, length)
        if rewound is None:
            source = _closest(self._taken.values(), length)
            length, held = self.best(length), 0 if source is None else source.most
            rewound = self.restore(cache, length)
        self.forget(after=length)
        self._most = held
        return rewound, length

    def forget(self, after: int = 0) -> None:
        """Drops the snapshots with more than `after` tokens."""
        self._taken = {length: one for length, one in self._taken.items() if length <= after}
        self._considered = min(self._considered, after)

    def held(self, cache: Cache) -> int:
        """Returns the largest number of tokens that a cache of the text has ever contained."""
        return max(self._most, int(cache.lengths_B[0]))

    def _make_room(self, new: Snapshot) -> bool:
        """Drops snapshots until a new one fits. Returns whether it fits."""
        while self.nbytes + new.nbytes > self.most_bytes:
            victim = self._least_missed(new)
            if victim is None:
                return False
            del self._taken[victim]
        return True

    def _least_missed(self, new: Snapshot) -> int | None:
        exempt = _closest([*self._taken.values(), new], self.prompt_tokens - 1)
        lengths = [*self.lengths, new.length]
        gaps = {
            length: after - before
            for before, length, after in zip([0, *lengths], lengths, lengths[1:])
            if exempt is None or length != exempt.length
        }
        return min(gaps, key=lambda length: gaps[length], default=None)


def _closest(snapshots, length: int) -> Snapshot | None:
    """Returns the snapshot that leads closest to `length` from below, or None."""
    usable = [one for one in snapshots if one.rewound(length) is not None]
    return max(usable, key=lambda one: (min(one.length, length), -one.length), default=None)


@functools.partial(jax.jit, static_argnums=1)
def _copied(states, length):
    """Copies states in one program, with room for `length` tokens.

    JAX may return an unchanged argument without a new buffer; `jnp.copy` forces one.
    """
    return tuple(
        None if state is None else jax.tree.map(jnp.copy, state.grown(length)) for state in states
    )
