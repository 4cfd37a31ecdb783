"""Prefill with a ring buffer: unrolls it into a copy ordered by position, and writes it back.

The copy contains the earlier tokens, then the new ones, so kernels see an ordinary buffer. The
newest tokens are then copied back into the ring. A single token attends to the ring directly.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference
from rocmforge_jax.nn.kv_state import KVState


def unrolled(ring: KVState, starts_B, tokens: int) -> tuple[KVState, jax.Array]:
    """Copies a ring buffer into an ordinary buffer with room for `tokens` tokens.

    Args:
        ring: A ring buffer with S slots.
        starts_B: int32, the position of each sequence's first new token.
        tokens: Number of new tokens, T.

    Returns:
        The buffer with S + T slots, and the position of the token in its first slot, int32 [B].
        The slots before the first new token contain the last S tokens, or fewer at the start of a
        sequence.
    """
    first_B = jnp.maximum(starts_B - ring.length, 0)
    order_BS = (first_B[:, None] + _numbers(ring.length)) % jnp.int32(ring.length)
    ordered = _picked(ring, order_BS)
    return dataclasses.replace(ordered, window=None).grown(ring.length + tokens), first_B


def rolled_up(buffer: KVState, first_B, ends_B, ring: KVState) -> KVState:
    """Copies the newest tokens of an unrolled buffer into a ring buffer.

    Args:
        buffer: The buffer that `unrolled` returned, with the new tokens written into it.
        first_B: int32, the position of the token in the first slot of the buffer.
        ends_B: int32, the position after each sequence's last real token. Later ones are padding.
        ring: The ring buffer that was unrolled. Only its size and window are used.

    Returns:
        A ring buffer with the size and window of `ring`.
    """
    positions_BS = reference.ring_positions(ends_B - 1, ring.length)
    # Empty slots may contain any finite numbers.
    positions_BS = jnp.where(positions_BS < 0, _numbers(ring.length), positions_BS)
    return dataclasses.replace(_picked(buffer, positions_BS - first_B[:, None]), window=ring.window)


def _numbers(slots: int):
    return jnp.arange(slots, dtype=jnp.int32)[None]


def _picked(state: KVState, slots_BS) -> KVState:
    """Returns a state with the given slots, in the given order."""
    keys = jnp.take_along_axis(state.keys, slots_BS[:, None, None], axis=3, mode="clip")
    values = jnp.take_along_axis(state.values, slots_BS[:, None, :, None], axis=2, mode="clip")
    return dataclasses.replace(state, keys=keys, values=values)
