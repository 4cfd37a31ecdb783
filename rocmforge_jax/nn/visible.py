"""Explicit attention masks, which replace the causal rule of the layers."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visible:
    """A mask that replaces the causal rule. A layer's window and chunks still apply.

    Attributes:
        seen_BTS: bool, whether a query may see a slot.
        places_BT: int32, the positions of the queries for windows, chunks and ALiBi.
        slots_BS: int32, the positions of the slots for windows, chunks and ALiBi.
    """

    seen_BTS: jax.Array
    places_BT: jax.Array
    slots_BS: jax.Array

    def under(self, rule: AttentionRule) -> jax.Array:
        """Returns which slots a query sees under a rule, bool [B, T, S]."""
        seen_BTS, distances_BTS = self.seen_BTS, self._distances()
        if rule.window is not None:
            reach = rule.window // 2 if rule.symmetric else rule.window - 1
            seen_BTS &= distances_BTS <= reach
        if rule.chunk is not None:
            queries_BT1 = (self.places_BT // rule.chunk)[..., None]
            seen_BTS &= queries_BT1 == (self.slots_BS // rule.chunk)[:, None]
        return seen_BTS

    def distances(self, rule: AttentionRule) -> jax.Array | None:
        """Returns the distances of queries and slots, float32 [B, T, S]; None without ALiBi."""
        return None if rule.alibi is None else self._distances().astype(jnp.float32)

    def _distances(self) -> jax.Array:
        return jnp.abs(self.places_BT[..., None] - self.slots_BS[:, None])
