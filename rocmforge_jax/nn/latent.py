"""Multi-head latent attention (DeepSeek-AI, 2024, arXiv:2405.04434), in its absorbed form.

The keys and values of all heads are projections of one latent vector per token. The key projection
is absorbed into the queries, and the value projection is applied after the weighted sum. The rest
is attention with a single KV head. Its values are its keys without the rotated elements.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule, reference
from rocmforge_jax.nn.kv_state import write_slots
from rocmforge_jax.nn.state import State
from rocmforge_jax.nn.visible import Visible


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class LatentState(State):
    """The latents of one layer; the token at position p is in slot p.

    Attributes:
        latents: [B, 1, S, R]: the normalised latent of a token, then the rotated part of its key.
    """

    latents: jax.Array

    @classmethod
    def zeros(cls, batch: int, width: int, length: int, dtype) -> "LatentState":
        """Returns an empty state for `length` tokens of `width` numbers each."""
        return cls(jnp.zeros((batch, 1, length, width), dtype))

    @property
    def length(self) -> int:
        """Number of slots, S."""
        return self.latents.shape[2]

    def grown(self, length: int) -> "LatentState":
        """Returns a state with room for `length` tokens; the added slots hold zeros."""
        if length == self.length:
            return self
        return LatentState(
            jnp.pad(self.latents, ((0, 0), (0, 0), (0, length - self.length), (0, 0)))
        )

    def rewound(self, held: int, length: int) -> "LatentState":
        """Returns the state unchanged; slots from `length` on have unspecified contents."""
        return self

    @property
    def rewinds(self) -> bool:
        """True, because no token is ever overwritten."""
        return True

    def write(self, new_BTR, starts_B) -> "LatentState":
        """Writes T tokens, at positions from starts_B[b] on, into their slots.

        The caller must ensure starts_B[b] + T <= length, which is not checked.
        """
        new = new_BTR.astype(self.latents.dtype)[:, None]
        return LatentState(write_slots(self.latents, new, starts_B.astype(jnp.int32), 1))


def attend_to_latents(
    q_BTNR,
    new_BTR,
    state: LatentState | None,
    starts_B,
    rule: AttentionRule,
    values: int,
    visible: Visible | None = None,
):
    """Writes T new tokens into the state and computes their attention, in plain XLA.

    Args:
        q_BTNR: Queries, projected into the space of the latents.
        new_BTR: The latents of the new tokens.
        state: The earlier tokens. None: the new tokens attend only to one another.
        starts_B: int32, the position of each sequence's first new token; unused without a state.
        rule: Which slots a query sees, and how scores become weights.
        values: The number of leading elements of a latent that are its value.
        visible: A mask that replaces the causal rule.

    Returns:
        The weighted sums [B, T, N, values] in q's dtype, and the state with the new tokens.
    """
    if state is None:
        latents, starts_B = new_BTR[:, None], jnp.zeros(q_BTNR.shape[:1], jnp.int32)
    else:
        state = state.write(new_BTR, starts_B)
        latents = state.latents
    keys = jnp.swapaxes(latents, 2, 3)  # part of the product, not a copy
    if visible is None:
        out = reference.prefill(q_BTNR, keys, latents, starts_B.astype(jnp.int32), rule)
    else:
        seen_BTS, distances_BTS = visible.under(rule), visible.distances(rule)
        out = reference.attend(q_BTNR, keys, latents, seen_BTS, rule, distances_BTS)
    return out[..., :values], state
