"""Multi-head latent attention (DeepSeek V2 and later) as a mixer."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make, check_sizes
from rocmforge_jax.models.mixers.temperature import Temperature
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import (
    AttentionRule,
    LatentState,
    RopeConfig,
    apply_rope,
    attend_to_latents,
    products,
    rope_table,
    through_each,
)


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Attention with one latent per token, from which keys and values of all heads are projected.

    The absorbed form is computed: see `nn/latent.py`.

    Attributes:
        heads: The number of query heads, N.
        rank: The width of a latent.
        key_width: The number of elements of a head's query or key that do not rotate.
        value_width: The width of a head's value.
        rope: The rotary embedding of the additional elements of queries and keys, all of which
            rotate. All heads share these elements of the keys.
        scale: Factor of the scores.
        query_rank: The width of the separate latent of the queries. None: attn_q computes the
            queries directly.
        temperature: Sharpens attention at later positions, or None.
    """

    heads: int
    rank: int
    key_width: int
    value_width: int
    rope: RopeConfig
    scale: float
    query_rank: int | None = None
    temperature: Temperature | None = None
    output = "attn_output"
    source = None
    takes_mask = True

    def __post_init__(self):
        check_sizes(
            heads=self.heads,
            rank=self.rank,
            key_width=self.key_width,
            value_width=self.value_width,
            query_rank=self.query_rank or 1,
        )

    @property
    def _query_width(self) -> int:
        return self.key_width + self.rope.width

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the shared projections, the projections of each head, and the norms of latents."""
        linear, queries = make.linear, self.heads * self._query_width
        made: dict[str, nnx.Module] = {}
        if self.query_rank is None:
            made["attn_q"] = linear("attn_q", make.width, queries)
        else:
            made["attn_q_a"] = linear("attn_q_a", make.width, self.query_rank)
            made["attn_q_a_norm"] = make.norm("attn_q_a_norm", self.query_rank)
            made["attn_q_b"] = linear("attn_q_b", self.query_rank, queries)
        latent = self.rank + self.rope.width
        of_each = functools.partial(make.experts, count=self.heads)
        return made | {
            "attn_kv_a_mqa": linear("attn_kv_a_mqa", make.width, latent),
            "attn_kv_a_norm": make.norm("attn_kv_a_norm", self.rank),
            "attn_k_b": of_each("attn_k_b", inputs=self.key_width, outputs=self.rank),
            "attn_v_b": of_each("attn_v_b", inputs=self.rank, outputs=self.value_width),
            "attn_output": linear("attn_output", self.heads * self.value_width, make.width),
        }

    def init_state(self, batch: int, length: int, dtype) -> LatentState:
        """Makes an empty state."""
        return LatentState.zeros(batch, self.rank + self.rope.width, length, dtype)

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: LatentState | None):
        """Computes attention [B, T, N * value_width] before the projection, and the new state."""
        first = layer.attn_q if self.query_rank is None else layer.attn_q_a
        q, latents = products(x_BTD, [first, layer.attn_kv_a_mqa], norm=norm)
        if self.query_rank is not None:
            (q,) = products(q, [layer.attn_q_b], norm=layer.attn_q_a_norm)
        table = tokens.rope or rope_table(tokens.positions_BT, self.rope)
        out_BTNR, state = attend_to_latents(
            self._queries(layer, q, table, tokens),
            self._latents(layer, latents, table),
            state,
            tokens.starts_B,
            AttentionRule(self.scale),
            self.rank,
            tokens.visible,
        )
        out_BTNH = through_each(out_BTNR, layer.attn_v_b)
        return out_BTNH.reshape(*x_BTD.shape[:2], -1), state

    def _queries(self, layer, q, table, tokens: Tokens):
        """Returns the queries in the space of the latents, [B, T, N, rank + rope.width]."""
        q_BTNH = q.reshape(*q.shape[:2], self.heads, -1)
        still, rotating = jnp.split(q_BTNH, [self.key_width], axis=-1)
        absorbed_BTNR = through_each(still, layer.attn_k_b)
        q_BTNR = jnp.concatenate([absorbed_BTNR, apply_rope(rotating, table, self.rope)], axis=-1)
        if self.temperature is None:
            return q_BTNR
        return self.temperature.sharpen(q_BTNR, tokens.positions_BT)

    def _latents(self, layer, latents_BTR, table):
        """Normalises the latents and rotates the rotary part of the keys."""
        latents, rotating = jnp.split(latents_BTR, [self.rank], axis=-1)
        rotated: Any = apply_rope(rotating[:, :, None], table, self.rope)[:, :, 0]
        return jnp.concatenate([layer.attn_kv_a_norm(latents), rotated], axis=-1)

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts absorbed queries, latents and weighted sums, and the scores twice."""
        return tokens * self.heads * (3 * (self.rank + self.rope.width) + 2 * slots)
