"""Several new tokens and a ring buffer: they attend to a copy in the order of positions.

The copy holds the tokens before, then the new ones, so kernels see an ordinary buffer. The newest
tokens go from it into the ring. That is for prefill; one token attends to the ring itself.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import reference
from rocmforge_jax.nn.kv_state import KVState


def unrolled(ring: KVState, starts_B, tokens: int) -> tuple[KVState, jax.Array]:
    """Copies a ring buffer into an ordinary buffer with room for `tokens` tokens.

    Args:
        ring: S slots.
        starts_B: int32, the position of each sequence's first new token.
        tokens: How many new tokens there are, T.

    Returns:
        The buffer [S + T slots], and int32 [B]: the position in its first slot. Its slots up to
        that of the first new token hold the last S tokens, or fewer at the start of a sequence.
    """
    first_B = jnp.maximum(starts_B - ring.length, 0)
    order_BS = (first_B[:, None] + _numbers(ring.length)) % jnp.int32(ring.length)
    ordered = _picked(ring, order_BS)
    return dataclasses.replace(ordered, window=None).grown(ring.length + tokens), first_B


def rolled_up(buffer: KVState, first_B, ends_B, ring: KVState) -> KVState:
    """Puts the newest tokens of an ordinary buffer into the slots of a ring buffer.

    Args:
        buffer: The buffer of `unrolled`, with the new tokens in it.
        first_B: int32, the position in the first slot of the buffer.
        ends_B: int32, the position after each sequence's last real token. Later ones are padding.
        ring: The ring that the buffer is a copy of; its size and window count.
    """
    positions_BS = reference.ring_positions(ends_B - 1, ring.length)
    # An empty slot may hold anything finite.
    positions_BS = jnp.where(positions_BS < 0, _numbers(ring.length), positions_BS)
    return dataclasses.replace(_picked(buffer, positions_BS - first_B[:, None]), window=ring.window)


def _numbers(slots: int):
    return jnp.arange(slots, dtype=jnp.int32)[None]


def _picked(state: KVState, slots_BS) -> KVState:
    """Returns a state with the slots of these numbers."""
    keys = jnp.take_along_axis(state.keys, slots_BS[:, None, None], axis=3, mode="clip")
    values = jnp.take_along_axis(state.values, slots_BS[:, None, :, None], axis=2, mode="clip")
    return dataclasses.replace(state, keys=keys, values=values)
