"""A decoder as flat arrays, which jitted functions take: see `generate.steps`."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from rocmforge_jax.models import Decoder
from rocmforge_jax.models.sharding import on_automatic_axes


@dataclasses.dataclass(frozen=True, eq=False)
class FlatDecoder:
    """The arrays that a decoder had when it was split, not copies of them.

    Attributes:
        leaves: The arrays.
        structure: The rest of the decoder. Decoders with equal structures share compiled programs.
    """

    leaves: list[jax.Array]
    structure: tuple[Any, Any]
    _read: tuple[list, Any] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, decoder: Decoder) -> "FlatDecoder":
        """Splits a decoder."""
        graphdef, state = nnx.split(decoder)
        leaves, treedef = jax.tree.flatten(state)
        leaves = list(map(on_automatic_axes, leaves))
        return cls(leaves, (graphdef, treedef), jax.tree.flatten(decoder))

    @property
    def merge(self) -> Callable[[Any], Decoder]:
        """A function from arrays, traced ones say, to the decoder; it keeps no array alive."""
        graphdef, treedef = self.structure
        return lambda leaves: nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

    def is_of(self, decoder: Decoder) -> bool:
        """Returns whether these are the arrays that the decoder has now."""
        # Flattening takes a tenth of the time of splitting, and finds out whether that is needed.
        leaves, structure = jax.tree.flatten(decoder)
        return structure == self._read[1] and all(map(operator.is_, leaves, self._read[0]))
