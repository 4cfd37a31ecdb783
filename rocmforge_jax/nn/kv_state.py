"""The KV cache of one attention layer: a fixed number of slots, written in place if donated.

Keys are [B, K, H, S] and values [B, K, S, H], so that both products of attention read them without
a copy. With [B, S, K, H], a CPU would copy all of them (measured: docs/kernels.md).

A layer with a sliding window needs only the tokens of its window. Its state is a ring buffer whose
size does not depend on the length of the context. `ring.py` adds several tokens to it at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pallas_kernels.symbolic_sizes import surely
from rocmforge_jax.backends.on_mesh import BATCH_AXIS, MODEL_AXIS
from rocmforge_jax.nn.state import State, partition, update_slice

#: Slots of a ring buffer beyond its window. It can be rewound by at least this many tokens.
SPARE_SLOTS = 32
#: The number of slots of a ring buffer is a multiple of this, so kernels read whole blocks.
RING_MULTIPLE = 64


def ring_size(window: int) -> int:
    """Returns the number of slots of a full-size ring buffer for a sliding window."""
    return _rounded_up(window + SPARE_SLOTS)


def _rounded_up(slots: int) -> int:
    return -(-slots // RING_MULTIPLE) * RING_MULTIPLE


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class KVState(State):
    """Keys and values of one layer; the token at position p is in slot p % S.

    Only a full-size ring buffer wraps around. In any other state, positions stay below S, so the
    token at position p is in slot p.

    Attributes:
        keys: [B, K, H, S].
        values: [B, K, S, H], in the same dtype.
        window: The sliding window whose tokens are kept; None to keep all tokens. Static.
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
            batch: Number of sequences.
            kv_heads: Number of KV heads.
            head_width: Elements of a head.
            length: Capacity in tokens per sequence.
            dtype: Dtype of keys and values.
            window: The sliding window of the layer's rule, or None. With a window, the state is a
                ring buffer.
        """
        slots = length if window is None else min(ring_size(window), _rounded_up(length))
        # Two buffers: a donated argument must not appear twice.
        keys, values = (batch, kv_heads, head_width, slots), (batch, kv_heads, slots, head_width)
        return cls(jnp.zeros(keys, dtype), jnp.zeros(values, dtype), window)

    @classmethod
    def of(cls, k_BTKH, v_BTKH) -> "KVState":
        """Returns a state with exactly these tokens, for attention without a cache."""
        return cls(k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3))

    @property
    def length(self) -> int:
        """Number of slots, S."""
        return self.values.shape[2]

    @property
    def wraps(self) -> bool:
        """Whether the state is a full-size ring buffer, in which positions may exceed S."""
        return self.window is not None and self.length >= ring_size(self.window)

    def grown(self, length: int) -> "KVState":
        """Returns a state with room for `length` tokens; the added slots hold zeros.

        A ring buffer grows at most to its full size, and does not wrap before it has reached it.
        A state with enough room is returned unchanged.
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
        """Returns the state of the first `length` tokens, or None if a part of it is lost.

        A ring buffer is lost if it has overwritten tokens in the window of position `length`.

        Args:
            held: The largest number of tokens that a sequence has ever held, without padding. It
                does not shrink when a ring buffer is rewound: overwritten tokens stay lost.
            length: Tokens to keep. The contents of later slots are unspecified.
        """
        if self.window is None or not self.wraps or held <= self.length:
            return self
        return self if held - length <= self.length - self.window else None

    @property
    def rewinds(self) -> bool:
        """Whether the state can be rewound to any length: true without a window."""
        return self.window is None

    def specs(self, mesh: Mesh) -> "KVState":
        """Returns PartitionSpecs: the batch over the axis "data", KV heads over "model"."""
        axes = {0: BATCH_AXIS, 1: MODEL_AXIS}
        return jax.tree.map(lambda a: partition(mesh, a.shape, axes), self)

    def write(self, k_BTKH, v_BTKH, starts_B) -> "KVState":
        """Writes T tokens, at positions from starts_B[b] on, into their slots.

        The caller must ensure starts_B[b] + T <= length, which is not checked. A ring buffer that
        wraps accepts any position, but only one token at a time.

        Raises:
            ValueError: There are several tokens for a ring buffer that wraps.
        """
        starts_B = self.slots_of(jnp.asarray(starts_B, jnp.int32), k_BTKH.shape[1])
        new = KVState.of(k_BTKH.astype(self.keys.dtype), v_BTKH.astype(self.values.dtype))
        return dataclasses.replace(
            self,
            keys=write_slots(self.keys, new.keys, starts_B, 2),
            values=write_slots(self.values, new.values, starts_B, 1),
        )

    def slots_of(self, starts_B, tokens: int):
        """Returns the slot of the first of several consecutive tokens, int32 [B].

        Args:
            starts_B: int32, the position of each sequence's first token.
            tokens: Number of tokens, T.

        Raises:
            ValueError: There are several tokens for a ring buffer that wraps.
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

    Up to 8 sequences are written one by one, each by an update in place. One update of the whole
    batch would be a scatter, for which CPUs copy the buffer.

    Args:
        buffer: An array with four axes; the first is the batch.
        update: The new tokens: the shape of `buffer`, but with T slots.
        starts_B: int32, the first slot to write of each sequence.
        axis: The axis of the slots, counted without the batch axis.
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
    """Writes the only row of a batch of 1; on CPUs under a condition that is always true.

    Without the condition, XLA:CPU fuses the update with the reshape that drops the batch axis. It
    then updates twice and copies the whole cache (measured: docs/kernels.md). On GPUs, a condition
    would cost a round trip to the host.
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
