"""Keys and values of one attention layer: fixed slots, written in place when they are donated.

A KVState owns its layout. Keys are [B, K, H, S] and values [B, K, S, H], so that both products of
attention read them without a copy (on a CPU, one layer at S=4096: 1.0 ms and 1 MB of temporaries,
against 14 ms and 34 MB for [B, S, K, H]).

A layer with a sliding window needs the tokens of its window only. Its state is a ring buffer, whose
size does not depend on the length of the context. `ring.py` adds several tokens at once to it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax.backends.on_mesh import BATCH_AXIS, MODEL_AXIS
from rocmforge_jax.nn.state import State, partition, update_slice

#: Slots of a ring beyond its window. A ring can be rewound by as many tokens.
SPARE_SLOTS = 32
#: The slots of a ring are a multiple of this, so that kernels cut them into whole blocks.
RING_MULTIPLE = 64


def ring_size(window: int) -> int:
    """Returns the slots of a full ring buffer for a sliding window."""
    return _rounded_up(window + SPARE_SLOTS)


def _rounded_up(slots: int) -> int:
    return -(-slots // RING_MULTIPLE) * RING_MULTIPLE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class KVState(State):
    """Keys and values of one layer; the token at position p is in slot p % S.

    Without a window, and while a ring buffer is not full-size, no position reaches S: the token at
    position p is in slot p.

    Attributes:
        keys: [B, K, H, S].
        values: [B, K, S, H], in the same dtype.
        window: The sliding window whose tokens the state holds; None for all tokens. Static.
    """

    keys: jax.Array
    values: jax.Array
    window: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    @classmethod
    def zeros(
        cls,
        batch: int,
        kv_heads: int,
        head_width: int,
        length: int,
        dtype,
        window: int | None = None,
    ) -> "KVState":
        """Returns an empty state.

        Args:
            batch: Sequences.
            kv_heads: KV heads.
            head_width: Elements of a head.
            length: Tokens per sequence that there is room for.
            dtype: Of keys and values.
            window: The sliding window of the layer's rule: then the state is a ring buffer.
        """
        slots = length if window is None else min(ring_size(window), _rounded_up(length))
        # Two buffers: a donated argument must not appear twice.
        keys, values = (batch, kv_heads, head_width, slots), (batch, kv_heads, slots, head_width)
        return cls(jnp.zeros(keys, dtype), jnp.zeros(values, dtype), window)

    @classmethod
    def of(cls, k_BTKH, v_BTKH) -> "KVState":
        """Returns a state that holds exactly these tokens, for attention without a cache."""
        return cls(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3))

    @property
    def length(self) -> int:
        """Slots, S."""
        return self.values.shape[2]

    @property
    def wraps(self) -> bool:
        """Whether positions may reach S or more: the state is a ring buffer of its full size."""
        return self.window is not None and self.length >= ring_size(self.window)

    def grown(self, length: int) -> "KVState":
        """Returns a state with room for `length` tokens; the added slots hold zeros.

        A ring buffer grows to its full size at most. Nothing has wrapped before. A state that has
        the room already is returned as it is.
        """
        if self.window is not None:
            length = max(self.length, min(ring_size(self.window), _rounded_up(length)))
        if length == self.length:
            return self
        more = (0, length - self.length)
        return dataclasses.replace(
            self,
            keys=jnp.pad(self.keys, ((0, 0), (0, 0), (0, 0), more)),
            values=jnp.pad(self.values, ((0, 0), (0, 0), more, (0, 0))),
        )

    def rewound(self, held: int, length: int) -> "KVState | None":
        """Returns itself, or None where a ring buffer has overwritten what is seen from there.

        Args:
            held: The most tokens that a sequence has ever held, padding excluded. A ring that was
                rewound before has still lost what those tokens overwrote.
            length: Tokens to keep. Later slots may hold anything.
        """
        if self.window is None or not self.wraps or held <= self.length:
            return self
        return self if held - length <= self.length - self.window else None

    @property
    def rewinds(self) -> bool:
        """Whether nothing is lost when later tokens are added: true without a window."""
        return self.window is None

    def specs(self, mesh: Mesh) -> "KVState":
        """Returns PartitionSpecs: the batch over the axis "data", KV heads over "model"."""
        axes = {0: BATCH_AXIS, 1: MODEL_AXIS}
        return jax.tree.map(lambda a: partition(mesh, a.shape, axes), self)

    def write(self, k_BTKH, v_BTKH, starts_B) -> "KVState":
        """Puts T tokens, at positions from starts_B[b] on, into their slots.

        The caller ensures starts_B[b] + T <= length; nothing checks it. A ring buffer that wraps
        takes any position, but one token at a time.

        Raises:
            ValueError: Several tokens for a ring buffer that wraps.
        """
        starts_B = self.slots_of(jnp.asarray(starts_B, jnp.int32), k_BTKH.shape[1])
        new = KVState.of(k_BTKH.astype(self.keys.dtype), v_BTKH.astype(self.values.dtype))
        return dataclasses.replace(
            self,
            keys=write_slots(self.keys, new.keys, starts_B, 2),
            values=write_slots(self.values, new.values, starts_B, 1),
        )

    def slots_of(self, starts_B, tokens: int):
        """Returns the slots from which on `tokens` tokens are stored, int32 [B].

        Args:
            starts_B: int32, the position of each sequence's first token.
            tokens: How many tokens follow one another, T.

        Raises:
            ValueError: Several tokens for a ring buffer that wraps.
        """
        if not self.wraps:
            return starts_B
        if tokens > 1:
            raise ValueError(
                f"a ring buffer of {self.length} slots takes 1 token at a time, got {tokens}: use"
                " attend_to_new"
            )
        return starts_B % jnp.int32(self.length)


def write_slots(buffer, update, starts_B, axis: int):
    """Writes new tokens into the slots of each sequence.

    Up to 8 sequences are written one by one. Each is an update in place; a batched update is a
    scatter, for which CPUs copy the buffer.

    Args:
        buffer: Four axes; the first is the batch.
        update: What to write: of the same shape, but with T slots.
        starts_B: int32, the first slot of each sequence that is written.
        axis: The axis of the slots, counted without the batch.
    """
    batch = buffer.shape[0]
    if batch == 1:
        return _write_only_row(buffer, update, starts_B[0], axis + 1)

    def write_row(b, buffer):
        starts = [jnp.int32(0)] * 4
        starts[0], starts[axis + 1] = jnp.int32(b), starts_B[b]
        return update_slice(buffer, jax.lax.dynamic_slice_in_dim(update, b, 1, 0), starts)

    if surely(lambda: batch <= 8):
        return functools.reduce(lambda buffer, b: write_row(b, buffer), range(batch), buffer)
    scatter = jax.vmap(lambda b, u, s: jax.lax.dynamic_update_slice_in_dim(b, u, s, axis))
    return jax.lax.platform_dependent(
        buffer,
        cpu=lambda buffer: jax.lax.fori_loop(0, batch, write_row, buffer),
        default=lambda buffer: scatter(buffer, update, starts_B),
    )


def _write_only_row(buffer, update, start, axis):
    """Writes the only row of a batch of 1; on CPUs under a condition that always holds.

    XLA:CPU fuses a bare update with the reshape that drops the batch axis. It then updates twice
    and copies the whole cache: 8 copies a layer, 12 instead of 1.3 ms a step with 4 layers of 4096
    slots. On GPUs a condition would cost a round trip to the host.
    """

    def write(buffer):
        return update_slice(
            buffer, update, [start if i == axis else jnp.zeros_like(start) for i in range(4)]
        )

    fits = start <= buffer.shape[axis] - update.shape[axis]
    return jax.lax.platform_dependent(
        buffer,
        cpu=lambda buffer: jax.lax.cond(fits, write, lambda buffer: buffer, buffer),
        default=write,
    )
