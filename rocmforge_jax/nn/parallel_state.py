"""The state of a layer that computes several mixers in parallel."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from rocmforge_jax.nn.state import State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class ParallelState(State):
    """The states of a layer's parallel mixers.

    Attributes:
        parts: One state per mixer. In a snapshot, None replaces each state that can be rewound.
    """

    parts: tuple[Any, ...]

    def grown(self, length: int) -> "ParallelState":
        """Returns the states with room for `length` tokens per sequence."""
        return ParallelState(tuple(part and part.grown(length) for part in self.parts))

    def rewound(self, held: int, length: int) -> "ParallelState | None":
        """Returns the states after the first `length` of `held` tokens, or None if one is lost."""
        parts = tuple(part and part.rewound(held, length) for part in self.parts)
        lost = any(new is None for old, new in zip(self.parts, parts) if old is not None)
        return None if lost else ParallelState(parts)

    @property
    def rewinds(self) -> bool:
        """Whether all states can be rewound to any length."""
        return all(part.rewinds for part in self.parts)

    def perishable(self) -> "ParallelState | None":
        """Returns a snapshot: the states that cannot be rewound, and None for the others."""
        if self.rewinds:
            return None
        return ParallelState(tuple(part.perishable() for part in self.parts))

    def restored(self, kept: "ParallelState | None", held: int, length: int) -> State | None:
        """Returns the states after the first `length` tokens; `kept` is a snapshot at `length`."""
        if kept is None:
            return self.rewound(held, length)
        pairs = zip(self.parts, kept.parts)
        return ParallelState(tuple(part.restored(old, held, length) for part, old in pairs))

    def specs(self, mesh: Mesh) -> "ParallelState":
        """Returns PartitionSpecs for the arrays of all states."""
        return ParallelState(tuple(part.specs(mesh) for part in self.parts))
