"""Snapshots of the states that cannot be rewound, so that a next prompt can go on from them.

Keys and values of all tokens can be cut to any earlier length. A recurrent state cannot, and a ring
buffer of a sliding window only by a few tokens: a copy that was made earlier takes their place. The
copies stay on the device.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rocmforge_jax.models.plan import available_bytes
from rocmforge_jax.nn import Cache, State

#: Most bytes of the snapshots of a text by default, and the share of the free memory.
SNAPSHOT_BYTES, SNAPSHOT_SHARE = 512 * 2**20, 10
#: Tokens that are generated from one snapshot to the next.
SNAPSHOT_INTERVAL = 64


def default_snapshot_bytes(device: Any = None) -> int:
    """Returns 512 MiB, or a tenth of the free memory of a device where that is less."""
    free = available_bytes(device)
    return SNAPSHOT_BYTES if free is None else min(SNAPSHOT_BYTES, max(0, free // SNAPSHOT_SHARE))


def snapshot_size(cache: Cache) -> int:
    """Returns the bytes of a snapshot of a cache, 0 where every state can be rewound."""
    return sum(state.nbytes for state in cache.perishable() if state is not None)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The states of one text at one length.

    Attributes:
        states: Of each layer, None where the state can be rewound.
        length: The tokens that they hold.
        most: The most tokens that they have held, see `Cache.rewound`.
    """

    states: tuple[State | None, ...]
    length: int
    most: int

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(state.nbytes for state in self.states if state is not None)

    def rewound(self, length: int) -> tuple[State | None, ...] | None:
        """Returns the states at up to `length` tokens, None if they are lost.

        A ring buffer can be rewound by a few tokens, a recurrent state by none.
        """
        if length >= self.length:
            return self.states
        states = tuple(
            None if state is None else state.rewound(self.most, length) for state in self.states
        )
        lost = any(new is None for old, new in zip(self.states, states) if old is not None)
        return None if lost else states


class Snapshots:
    """The snapshots of one text, at growing lengths and bounded in bytes.

    If there is no room for a new one, the snapshot whose loss leaves the smallest gap is dropped.
    Two are exempt: the newest, which the next message goes on from, and the one which another
    answer to the same prompt goes on from. If only one of these two fits, it is the latter: without
    it a long conversation would be computed again, without the former only its last answer.

    Attributes:
        most_bytes: The bound.
        prompt_tokens: Tokens of the last prompt.
    """

    def __init__(self, most_bytes: int, *, held: int = 0):
        """Makes no snapshots yet. held: Tokens that the cache of the text has held, at most."""
        self.most_bytes, self.prompt_tokens = most_bytes, 0
        self._taken: dict[int, Snapshot] = {}
        self._considered = 0  # the last length for which a snapshot was considered
        self._most = held  # tokens that the cache has held, at most; see `Cache.rewound`

    @property
    def lengths(self) -> list[int]:
        """The lengths at which there are snapshots, in ascending order."""
        return sorted(self._taken)

    @property
    def nbytes(self) -> int:
        """Bytes of all snapshots."""
        return sum(snapshot.nbytes for snapshot in self._taken.values())

    def suit(self, cache: Cache) -> bool:
        """Returns whether a cache needs snapshots, and one of them fits."""
        return 0 < snapshot_size(cache) <= self.most_bytes

    def due(self, length: int) -> bool:
        """Returns whether the text has grown by `SNAPSHOT_INTERVAL` tokens since the last one."""
        return length - self._considered >= SNAPSHOT_INTERVAL

    def take(self, cache: Cache, length: int) -> None:
        """Takes a snapshot if the cache needs one and it fits, without waiting for the device.

        Args:
            cache: Of one sequence. Its arrays are copied, so it may be donated afterwards.
            length: The tokens that it holds, more than at the last snapshot.
        """
        self._considered = length
        new = Snapshot(cache.perishable(), length, max(self._most, length))
        if self.suit(cache) and self._make_room(new):
            states = _copied(new.states, cache.length)
            self._taken[length] = dataclasses.replace(new, states=states)

    def split(self, cache: Cache, length: int, last: int) -> bool:
        """Returns whether a snapshot is needed `last` tokens before the end of a prompt.

        Otherwise one at the end can be rewound so far.

        Args:
            cache: With room for the prompt.
            length: Tokens of the prompt.
            last: Tokens to go back by.
        """
        at_the_end = Snapshot(cache.perishable(), length, length)
        return self.suit(cache) and at_the_end.rewound(length - last) is None

    def best(self, length: int) -> int:
        """Returns the most tokens, up to a length, that can be restored; 0 if there are none."""
        source = _closest(self._taken.values(), length)
        return 0 if source is None else min(source.length, length)

    def restore(self, cache: Cache, length: int) -> Cache | None:
        """Returns the cache as it was at a length, from a copy of a snapshot.

        Args:
            cache: Of the same text. States that can be rewound stay its own.
            length: As `best` returned it. For any other one the result may be None.
        """
        source = _closest(self._taken.values(), length)
        if source is None or source.length < length:
            return None
        states = _copied(source.rewound(length), cache.length)
        return cache.restored(states, self.held(cache), length)

    def rewind(self, cache: Cache, length: int) -> tuple[Cache | None, int]:
        """Goes back to a length, or else as close before it as a snapshot leads.

        Later snapshots are dropped: the text may go on differently.

        Args:
            cache: Of the text.
            length: Tokens to keep.

        Returns:
            (the cache, the tokens that it holds), or (None, 0) where nothing can be kept.
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
        """Drops the snapshots of more than `after` tokens."""
        self._taken = {length: one for length, one in self._taken.items() if length <= after}
        self._considered = min(self._considered, after)

    def held(self, cache: Cache) -> int:
        """Returns how many tokens a cache of the text has held, at most."""
        return max(self._most, int(cache.lengths_B[0]))

    def _make_room(self, new: Snapshot) -> bool:
        """Drops snapshots until a new one fits; returns whether it does."""
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
    """Returns the snapshot that leads closest to a length from below, None if none does."""
    usable = [one for one in snapshots if one.rewound(length) is not None]
    return max(usable, key=lambda one: (min(one.length, length), -one.length), default=None)


@functools.partial(jax.jit, static_argnums=1)
def _copied(states, length):
    """Copies states in one program, with room for `length` tokens.

    JAX does not promise a buffer of its own for an argument that is returned as it is; `jnp.copy`
    asks for one.
    """
    return tuple(
        None if state is None else jax.tree.map(jnp.copy, state.grown(length)) for state in states
    )
