"""Grouped-query attention as a mixer."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.config import Make, Tokens, check_sizes
from rocmforge_jax.nn import AttentionRule, KVState, RopeConfig, attend_to_new, products, rope_table


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of `heads` query heads to `kv_heads` KV heads of `head_width` each.

    Attributes:
        heads: Query heads, N.
        kv_heads: KV heads, K, a divisor of N.
        head_width: Of queries, keys and values, H.
        rope: Which elements of a head rotate, and how fast.
        qk_norm: Whether queries and keys are normed, each head by itself ("head"), before they
            rotate.
        fused_qkv: Whether q, k and v are one tensor, attn_qkv.
    """

    heads: int
    kv_heads: int
    head_width: int
    rope: RopeConfig
    qk_norm: Literal["head"] | None = None
    fused_qkv: bool = False
    output = "attn_output"

    def __post_init__(self):
        check_sizes(heads=self.heads, kv_heads=self.kv_heads, head_width=self.head_width)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"the model has {self.heads} heads and {self.kv_heads} KV heads: heads must be a"
                " multiple of KV heads"
            )
        if self.rope.width > self.head_width:
            raise ValueError(
                f"rope rotates {self.rope.width} elements of a head of {self.head_width}"
            )

    @property
    def _widths(self) -> tuple[int, int]:
        """Widths of all queries, and of all keys."""
        return self.heads * self.head_width, self.kv_heads * self.head_width

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections and the norms of heads."""
        q, kv = self._widths
        if self.fused_qkv:
            sizes = {"attn_qkv": q + 2 * kv}
        else:
            sizes = {"attn_q": q, "attn_k": kv, "attn_v": kv}
        made: dict[str, nnx.Module] = {
            name: make.linear(name, make.width, size) for name, size in sizes.items()
        }
        if self.qk_norm:
            for name in ("attn_q_norm", "attn_k_norm"):
                made[name] = make.norm(name, self.head_width)
        made["attn_output"] = make.linear("attn_output", q, make.width)
        return made

    def init_state(self, batch: int, length: int, dtype) -> KVState:
        """Makes an empty KV cache."""
        return KVState.zeros(batch, self.kv_heads, self.head_width, length, dtype)

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: KVState | None):
        """Computes attention [B, T, N * H] before the output projection, and the KV cache."""
        q_BTNH, k_BTKH, v_BTKH = self._qkv(layer, x_BTD, norm)
        norms = (layer.attn_q_norm, layer.attn_k_norm) if self.qk_norm else None
        rule = AttentionRule(self.head_width**-0.5)
        table = rope_table(tokens.positions_BT, self.rope) if tokens.rope is None else tokens.rope
        new = q_BTNH, k_BTKH, v_BTKH, table, self.rope
        return attend_to_new(
            *new, state, tokens.starts_B, rule, norms=norms, numerics=layer.numerics
        )

    def _qkv(self, layer, x_BTD, norm):
        if self.fused_qkv:
            q, kv = self._widths
            (fused,) = products(x_BTD, [layer.attn_qkv], norm=norm)
            parts = jnp.split(fused, [q, q + kv], axis=-1)
        else:
            parts = products(x_BTD, [layer.attn_q, layer.attn_k, layer.attn_v], norm=norm)
        return [part.reshape(*part.shape[:2], -1, self.head_width) for part in parts]

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts queries, keys and values, and the scores twice."""
        return tokens * self.heads * (4 * self.head_width + 2 * slots)
