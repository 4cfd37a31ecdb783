"""The key/value cache: fixed slots on the device, written in place when the cache is donated.

A cache owns its layout. Keys are [B, K, H, S] and values [B, K, S, H], so that both products of
attention read them without a copy (on a CPU, one layer at S=4096: 1.0 ms and 1 MB of temporaries,
against 14 ms and 34 MB for [B, S, K, H]). Whoever copies rows, grows or rewinds a cache calls its
methods and needs no knowledge of its axes.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer.

    keys: [B, K, H, S]. values: [B, K, S, H]. Both have one dtype.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def zeros(cls, batch: int, kv_heads: int, head_width: int, length: int, dtype) -> "LayerCache":
        """An empty cache of `length` slots for each of `batch` sequences."""
        # Two buffers: a donated argument must not appear twice.
        keys, values = (batch, kv_heads, head_width, length), (batch, kv_heads, length, head_width)
        return cls(jnp.zeros(keys, dtype), jnp.zeros(values, dtype))

    @classmethod
    def of(cls, k_BTKH, v_BTKH) -> "LayerCache":
        """A cache that holds exactly these tokens, for attention without a cache."""
        return cls(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3))

    @property
    def length(self) -> int:
        """Slots, S."""
        return self.values.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, also where they are only shapes (`jax.eval_shape`)."""
        return _nbytes(self)

    def row(self, b) -> "LayerCache":
        """Sequence b alone, as a cache of batch 1. b: int or int32 []."""
        return jax.tree.map(lambda array: _take_row(array, b), self)

    def with_row(self, b, other: "LayerCache") -> "LayerCache":
        """The cache with all slots of sequence b taken from `other`, a cache of batch 1."""
        return jax.tree.map(lambda array, new: _put_row(array, b, new), self, other)

    def grown(self, length: int) -> "LayerCache":
        """A copy with `length` slots per sequence; the added ones hold zeros."""
        more = (0, length - self.length)
        return LayerCache(
            jnp.pad(self.keys, ((0, 0), (0, 0), (0, 0), more)),
            jnp.pad(self.values, ((0, 0), (0, 0), more, (0, 0))),
        )

    def rewound(self, lengths_B) -> "LayerCache":
        """The cache of the first lengths_B[b] tokens: later slots may hold anything."""
        return self

    def write(self, k_BTKH, v_BTKH, starts_B) -> "LayerCache":
        """Put T tokens into the slots from starts_B[b] on.

        The caller ensures starts_B[b] + T <= length; nothing checks it.
        """
        starts_B = jnp.asarray(starts_B, jnp.int32)
        new = LayerCache.of(k_BTKH.astype(self.keys.dtype), v_BTKH.astype(self.values.dtype))
        return LayerCache(
            _write(self.keys, new.keys, starts_B, 2), _write(self.values, new.values, starts_B, 1)
        )


def _write(buffer, update, starts_B, axis):
    """Writes up to 8 rows one by one.

    Each is an update in place; a batched update is a scatter, for which CPUs copy the buffer.
    """
    batch = buffer.shape[0]
    if batch == 1:
        return _write_only_row(buffer, update, starts_B[0], axis + 1)

    def write_row(b, buffer):
        starts = [jnp.int32(0)] * 4
        starts[0], starts[axis + 1] = jnp.int32(b), starts_B[b]
        return _update(buffer, jax.lax.dynamic_slice_in_dim(update, b, 1, 0), starts)

    if batch <= 8:
        return functools.reduce(lambda buffer, b: write_row(b, buffer), range(batch), buffer)
    scatter = jax.vmap(lambda b, u, s: jax.lax.dynamic_update_slice_in_dim(b, u, s, axis))
    return jax.lax.platform_dependent(
        buffer,
        cpu=lambda buffer: jax.lax.fori_loop(0, batch, write_row, buffer),
        default=lambda buffer: scatter(buffer, update, starts_B),
    )


def _update(buffer, update, starts):
    """Calls `dynamic_update_slice`, with 2-byte floats seen as integers.

    XLA:CPU would cast the whole cache to float32 and back for 2-byte floats.
    """
    if buffer.dtype.itemsize != 2:
        return jax.lax.dynamic_update_slice(buffer, update, starts)

    def bits(array):
        return jax.lax.bitcast_convert_type(array, jnp.uint16)

    return jax.lax.bitcast_convert_type(
        jax.lax.dynamic_update_slice(bits(buffer), bits(update), starts), buffer.dtype
    )


def _take_row(array, b):
    return jax.lax.dynamic_slice_in_dim(array, b, 1, axis=0)


def _put_row(array, b, new):
    starts = [jnp.asarray(b, jnp.int32)] + [jnp.int32(0)] * (array.ndim - 1)
    return _update(array, new, starts)


def _nbytes(tree) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _write_only_row(buffer, update, start, axis):
    """Writes the only row of a batch of 1; on CPUs under a condition that always holds.

    XLA:CPU fuses a bare update with the reshape that drops the batch axis. It then updates twice
    and copies the whole cache: 8 copies a layer, 12 instead of 1.3 ms a step with 4 layers of 4096
    slots. On GPUs a condition would cost a round trip to the host.
    """

    def write(buffer):
        return _update(
            buffer, update, [start if i == axis else jnp.zeros_like(start) for i in range(4)]
        )

    fits = start <= buffer.shape[axis] - update.shape[axis]
    return jax.lax.platform_dependent(
        buffer,
        cpu=lambda buffer: jax.lax.cond(fits, write, lambda buffer: buffer, buffer),
        default=write,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """One LayerCache per layer, and how many slots of each sequence are filled.

    lengths_B: int32 [B], 0 to `length`; sequence b has seen lengths_B[b] tokens, its next one goes
    to that slot.
    """

    layers: tuple[LayerCache, ...]
    lengths_B: jax.Array

    @classmethod
    def zeros(
        cls, layers: int, batch: int, kv_heads: int, head_width: int, length: int, dtype
    ) -> "Cache":
        """An empty cache. ValueError for a size below 1."""
        if min(layers, batch, kv_heads, head_width, length) < 1:
            raise ValueError(
                f"a cache needs positive sizes, got {layers} layers, batch {batch}, {kv_heads} KV"
                f" heads of {head_width}, length {length}"
            )
        return _zeros(layers, batch, kv_heads, head_width, length, jnp.dtype(dtype))

    @property
    def length(self) -> int:
        """Slots per sequence, S."""
        return self.layers[0].length

    @property
    def batch(self) -> int:
        """Sequences, B."""
        return self.lengths_B.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, also where they are only shapes (`jax.eval_shape`)."""
        return _nbytes(self)

    def row(self, b) -> "Cache":
        """Sequence b alone, as a cache of batch 1. b: int or int32 [], 0 to batch - 1."""
        return Cache(tuple(layer.row(b) for layer in self.layers), _take_row(self.lengths_B, b))

    def with_row(self, b, other: "Cache") -> "Cache":
        """The cache with sequence b replaced by that of `other`.

        Donate the cache under `jax.jit` to write in place.

        Args:
            b: int or int32 [], 0 to batch - 1.
            other: a cache of batch 1 with as many slots and the same dtype.

        Raises:
            ValueError: `other` has another batch or length.
        """
        if (other.batch, other.length) != (1, self.length):
            raise ValueError(
                f"a row of this cache has batch 1 and {self.length} slots, got batch"
                f" {other.batch} and {other.length} slots"
            )
        layers = tuple(layer.with_row(b, new) for layer, new in zip(self.layers, other.layers))
        return Cache(layers, _put_row(self.lengths_B, b, other.lengths_B))

    def grown(self, length: int) -> "Cache":
        """A copy with `length` slots per sequence, at least as many as now.

        The copy is made by one compiled program; the added slots hold zeros.
        """
        if length < self.length:
            raise ValueError(f"a cache of {self.length} slots cannot grow to {length}")
        return _grown(self, length)

    def rewound(self, lengths_B) -> "Cache":
        """The cache as it was when sequence b had lengths_B[b] tokens, at most as many as now.

        No array is copied: slots from lengths_B on are free, whatever they hold.
        """
        layers = tuple(layer.rewound(lengths_B) for layer in self.layers)
        return Cache(layers, jnp.asarray(lengths_B, jnp.int32))


@functools.partial(jax.jit, static_argnums=1)
def _grown(cache: Cache, length: int) -> Cache:
    return Cache(tuple(layer.grown(length) for layer in cache.layers), cache.lengths_B)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _zeros(layers, batch, kv_heads, head_width, length, dtype):
    """All layers in one program: one program per array takes a third of a second at the start."""

    def layer():
        return LayerCache.zeros(batch, kv_heads, head_width, length, dtype)

    return Cache(tuple(layer() for _ in range(layers)), jnp.zeros((batch,), jnp.int32))
