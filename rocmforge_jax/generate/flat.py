"""A decoder as a flat list of arrays, for jitted functions: see `generate.steps`."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models import Decoder
from rocmforge_jax.models.sharding import on_automatic_axes
from rocmforge_jax.quant import QTensor


@dataclasses.dataclass(frozen=True, eq=False)
class FlatDecoder:
    """A decoder, split into its arrays and its structure. The arrays are not copied.

    Attributes:
        leaves: The arrays.
        structure: The rest of the decoder. Decoders with equal structures share compiled programs.
    """

    leaves: list[jax.Array]
    structure: tuple[Any, Any]
    _read: tuple[list, Any] = dataclasses.field(repr=False)
    _objects: "_Objects" = dataclasses.field(repr=False)

    @classmethod
    def of(cls, decoder: Decoder) -> "FlatDecoder":
        """Splits a decoder into its arrays and its structure."""
        graphdef, state = nnx.split(decoder)
        leaves, treedef = jax.tree.flatten(state)
        leaves = list(map(on_automatic_axes, leaves))
        return cls(leaves, (graphdef, treedef), jax.tree.flatten(decoder), _Objects(decoder))

    @property
    def merge(self) -> Callable[[Any], Decoder]:
        """A function that makes the decoder from arrays, or tracers. It refers to no array."""
        graphdef, treedef = self.structure
        return lambda leaves: nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

    def is_of(self, decoder: Decoder) -> bool:
        """Returns whether the decoder still has the same arrays and the same structure."""
        if self._objects.are_of(decoder):
            return True
        # Flattening is much cheaper than splitting, and shows whether a new split is needed.
        leaves, structure = jax.tree.flatten(decoder)
        return structure == self._read[1] and all(map(operator.is_, leaves, self._read[0]))

    @functools.cached_property
    def checksums(self) -> list[tuple[str, int]]:
        """The name and a checksum of each weight, computed on the device at first use."""
        state = jax.tree.unflatten(self.structure[1], self.leaves)
        weights, _ = jax.tree.flatten_with_path(state, is_leaf=lambda x: isinstance(x, QTensor))
        sums = jax.device_get([_checksum(weight) for _, weight in weights])
        return [(jax.tree_util.keystr(path), int(sum)) for (path, _), sum in zip(weights, sums)]


class _Objects:
    """The objects that a decoder consists of, and what each of them refers to.

    Comparing references is quicker than flattening the decoder. An attribute that was replaced by
    an equal one counts as changed here.
    """

    def __init__(self, decoder: Decoder):
        self._root, nodes = decoder, [node for _, node in nnx.iter_graph(decoder)]
        dicts = [vars(node) for node in nodes if isinstance(node, nnx.Pytree)]
        self._values = [
            (node, node.get_raw_value()) for node in nodes if isinstance(node, nnx.Variable)
        ]
        dicts += [value.planes for _, value in self._values if isinstance(value, QTensor)]
        self._references = [(each, list(each), list(each.values())) for each in dicts]
        self._metadata = [(node, dict(node.get_metadata())) for node, _ in self._values]

    def are_of(self, decoder: Decoder) -> bool:
        """Returns whether the decoder is the same object and refers to the same objects."""
        return (
            decoder is self._root
            and all(node.get_raw_value() is value for node, value in self._values)
            and all(
                list(each) == keys and all(map(operator.is_, each.values(), values))
                for each, keys, values in self._references
            )
            and all(node.get_metadata() == metadata for node, metadata in self._metadata)
        )


@jax.jit
def _checksum(weight):
    """Returns a sum over the bits of an array, uint32 []; of a QTensor, how many of them are set.

    That number is the same in every layout of planes.
    """
    if isinstance(weight, QTensor):
        planes = map(_bits, jax.tree.leaves(weight))
        return sum(jnp.sum(jax.lax.population_count(plane), dtype=jnp.uint32) for plane in planes)
    bits = _bits(weight).ravel().astype(jnp.uint32)
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


def _bits(array) -> jax.Array:
    """Returns the bits of the elements of an array as unsigned integers."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint8)
    width = 8 * array.dtype.itemsize
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}"))
