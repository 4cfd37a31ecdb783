"""The decode state of a model: what its layers keep about earlier tokens.

Each layer has a `State`, and a `Cache` contains the states of all layers. Their methods copy rows,
grow or rewind a cache, so callers do not depend on the axes of the arrays.
"""

import collections
import dataclasses
import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rocmforge_jax.arguments import integer
from rocmforge_jax.backends.on_mesh import BATCH_AXIS
from rocmforge_jax.html import element, escape, joined, sized, table
from rocmforge_jax.quant import readable


class State:
    """The state of one layer for each sequence of a batch.

    A subclass is a frozen dataclass and a pytree. The first axis of each of its arrays is the
    batch. The default methods suit a recurrent state, whose size does not depend on the number of
    tokens and which cannot be rewound.
    """

    def __repr__(self):
        # Without the numbers of the arrays: they fill pages and are zeros at first.
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]  # of a subclass
        values = ((field.name, getattr(self, field.name)) for field in fields)
        return f"{type(self).__name__}({', '.join(f'{k}={_described(v)}' for k, v in values)})"

    def row(self, b) -> Self:
        """Returns the state of sequence b (int or int32 []), with a batch of 1."""
        return jax.tree.map(lambda array: take_row(array, b), self)

    def with_row(self, b, other: Self) -> Self:
        """Returns the state with sequence b replaced by `other`, a state with a batch of 1."""
        return jax.tree.map(lambda array, new: put_row(array, b, new), self, other)

    def grown(self, length: int) -> Self:
        """Returns the state with room for `length` tokens per sequence; it may only grow."""
        return self

    def rewound(self, held: int, length: int) -> Self | None:
        """Returns the state after the first `length` of `held` tokens, or None if it is lost."""
        return self if length == held else None

    @property
    def rewinds(self) -> bool:
        """Whether the state can be rewound to any length, so that it needs no snapshots."""
        return False

    def perishable(self) -> Self | None:
        """Returns the part of the state that a snapshot must keep; None if it can be rewound."""
        return None if self.rewinds else self

    def restored(self, kept: Self | None, held: int, length: int) -> Self | None:
        """Returns the state after the first `length` tokens.

        Args:
            kept: The result of `perishable` when the state had `length` tokens.
            held: Tokens in the state now.
            length: Tokens to keep.
        """
        return self.rewound(held, length) if kept is None else kept

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes; also works for abstract arrays (`jax.eval_shape`)."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(self))

    def specs(self, mesh: Mesh) -> Self:
        """Returns a PartitionSpec for each array: the batch over the mesh axis "data"."""
        return jax.tree.map(lambda a: partition(mesh, a.shape, {0: BATCH_AXIS}), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NoState(State):
    """The state of a layer without memory of earlier tokens."""

    def rewound(self, held: int, length: int) -> "NoState":
        """Returns the state unchanged."""
        return self

    @property
    def rewinds(self) -> bool:
        """True, because the state is empty."""
        return True


def partition(mesh: Mesh, shape: tuple[int, ...], wanted: dict[int, str]) -> PartitionSpec:
    """Returns the PartitionSpec of an array.

    Args:
        mesh: The mesh of devices.
        shape: The shape of the array.
        wanted: Array axis -> mesh axis. The array is replicated along an axis if the mesh lacks it,
            or if the size of the mesh axis does not divide the array's.
    """
    names: list[str | None] = [None] * len(shape)
    for axis, name in wanted.items():
        if name in mesh.shape and shape[axis] % mesh.shape[name] == 0:
            names[axis] = name
    return PartitionSpec(*names)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Cache:
    """The states of all layers of a model.

    Attributes:
        layers: The state of each layer.
        lengths_B: int32 [B], 0 to `length`: the number of tokens processed of each sequence.
        length: Capacity in tokens per sequence. Static.
    """

    layers: tuple[State, ...]
    lengths_B: jax.Array
    length: int = dataclasses.field(metadata=dict(static=True))

    def __repr__(self):
        if not hasattr(self.lengths_B, "shape"):  # a PartitionSpec, from `specs`
            return f"Cache({self.layers}, {self.lengths_B}, {self.length})"
        return (
            f"Cache(batch={self.batch}, length={self.length}, tokens={self._filled},"
            f" {len(self.layers)} layers, {self.nbytes:,} B)"
        )

    def _repr_html_(self) -> str:
        if not hasattr(self.lengths_B, "shape"):
            return escape(repr(self))
        lines = collections.Counter(
            (type(one).__name__, repr(one), one.nbytes) for one in self.layers
        )
        rows = (
            (f"{count} x {name}", text.removeprefix(name), sized(count * nbytes))
            for (name, text, nbytes), count in lines.items()
        )
        return joined(
            element("b", f"Cache of {self.batch} x {self.length:,} slots, {sized(self.nbytes)}"),
            element("div", f"tokens held: {self._filled}"),
            table(("layers", "arrays", "bytes"), rows),
        )

    @property
    def _filled(self) -> str:
        """The tokens that each sequence has seen, as text; "?" where they are not known."""
        return str(np.asarray(self.lengths_B).tolist()) if readable(self.lengths_B) else "?"

    @property
    def batch(self) -> int:
        """Number of sequences, B."""
        return self.lengths_B.shape[0]

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes; also works for abstract arrays (`jax.eval_shape`)."""
        lengths = self.lengths_B.size * self.lengths_B.dtype.itemsize
        return sum(layer.nbytes for layer in self.layers) + lengths

    def row(self, b) -> "Cache":
        """Returns the cache of sequence b (int or int32 [], 0 to batch - 1), with a batch of 1."""
        layers = tuple(layer.row(b) for layer in self.layers)
        return Cache(layers, take_row(self.lengths_B, b), self.length)

    def with_row(self, b, other: "Cache") -> "Cache":
        """Returns the cache with sequence b replaced by the only sequence of `other`.

        Donate the cache under `jax.jit` to write in place.

        Args:
            b: int or int32 [], 0 to batch - 1.
            other: A cache with a batch of 1 and the same length and dtype.

        Raises:
            ValueError: `other` has another batch or length.
        """
        if (other.batch, other.length) != (1, self.length):
            raise ValueError(
                f"a row of this cache has batch 1 and {self.length} slots, got batch"
                f" {other.batch} and {other.length} slots"
            )
        layers = tuple(layer.with_row(b, new) for layer, new in zip(self.layers, other.layers))
        return Cache(layers, put_row(self.lengths_B, b, other.lengths_B), self.length)

    def grown(self, length: int) -> "Cache":
        """Returns a copy with room for `length` tokens per sequence; a cache cannot shrink.

        A single compiled program makes the copy.

        Raises:
            ValueError: `length` is below the current length.
        """
        length = integer("length", length, 1)
        if length < self.length:
            raise ValueError(f"a cache of {self.length} slots cannot grow to {length}")
        return _grown(self, length)

    def rewound(self, held: int, length: int) -> "Cache | None":
        """Returns the cache after the first `length` tokens of every sequence.

        Args:
            held: Tokens of every sequence now.
            length: Tokens to keep, 0 to `held`.

        Returns:
            The cache, or None if a layer cannot be rewound that far. No array is copied.
        """
        rewound = (layer.rewound(held, length) for layer in self.layers)
        layers = tuple(layer for layer in rewound if layer is not None)
        if len(layers) < len(self.layers):
            return None
        return Cache(layers, jnp.full((self.batch,), length, jnp.int32), self.length)

    def perishable(self) -> tuple[State | None, ...]:
        """Returns a snapshot: the states that cannot be rewound, and None for the other layers."""
        return tuple(layer.perishable() for layer in self.layers)

    def restored(self, states: tuple[State | None, ...], held: int, length: int) -> "Cache":
        """Returns the cache after the first `length` tokens, using a snapshot.

        Args:
            states: The result of `perishable` when every sequence had `length` tokens. The states
                of layers with None are rewound.
            held: Tokens of every sequence now.
            length: Tokens to keep.
        """
        layers: Any = tuple(
            layer.restored(state, held, length) for layer, state in zip(self.layers, states)
        )
        return Cache(layers, jnp.full((self.batch,), length, jnp.int32), self.length)

    def specs(self, mesh: Mesh) -> "Cache":
        """Returns a PartitionSpec for each array: see `State.specs`."""
        layers = tuple(layer.specs(mesh) for layer in self.layers)
        lengths: Any = partition(mesh, self.lengths_B.shape, {0: BATCH_AXIS})
        return Cache(layers, lengths, self.length)


@functools.partial(jax.jit, static_argnums=1)
def _grown(cache: Cache, length: int) -> Cache:
    return Cache(tuple(layer.grown(length) for layer in cache.layers), cache.lengths_B, length)


def _described(value) -> str:
    """Writes an array as its dtype and shape, anything else as its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def take_row(array, b):
    """Returns array[b : b + 1]; b may be traced."""
    return jax.lax.dynamic_slice_in_dim(array, b, 1, axis=0)


def put_row(array, b, new):
    """Returns the array with row b replaced by `new` [1, ...]; b may be traced."""
    starts = [jnp.asarray(b, jnp.int32)] + [jnp.int32(0)] * (array.ndim - 1)
    return update_slice(array, new, starts)


def update_slice(buffer, update, starts):
    """Calls `dynamic_update_slice`, with 2-byte floats reinterpreted as integers.

    For 2-byte floats, XLA:CPU would cast the whole buffer to float32 and back.
    """
    if buffer.dtype.itemsize != 2:
        return jax.lax.dynamic_update_slice(buffer, update, starts)

    def bits(array):
        return jax.lax.bitcast_convert_type(array, jnp.uint16)

    return jax.lax.bitcast_convert_type(
        jax.lax.dynamic_update_slice(bits(buffer), bits(update), starts), buffer.dtype
    )
