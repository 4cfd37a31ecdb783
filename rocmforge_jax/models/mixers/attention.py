"""Grouped-query attention as a mixer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.make import Make
from rocmforge_jax.models.mixers.attention_options import AttentionOptions
from rocmforge_jax.models.parts import Tokens
from rocmforge_jax.nn import (
    KVState,
    NoState,
    Vector,
    apply_rope,
    array_of,
    attend_to_new,
    cached_attention,
    products,
    rms_norm,
    rope_table,
)


@dataclasses.dataclass(frozen=True)
class Attention(AttentionOptions):
    """Grouped-query attention; `AttentionOptions` documents its fields."""

    takes_mask = True

    def modules(self, make: Make) -> Mapping[str, nnx.Module]:
        """Makes the projections, the norms and the sinks."""
        made: dict[str, nnx.Module] = {
            name: make.linear(name, make.width, size) for name, size in self._projections().items()
        }
        normed = ("attn_q", "attn_k") if self.source is None else ("attn_q",)
        for name in normed if self.qk_norm not in ("unit", None) else ():
            made[f"{name}_norm"] = self._head_norm(make, name)
        if self.sinks:
            made["attn_sinks"] = Vector(self.heads)
        if self.sub_norm:
            made["attn_sub_norm"] = make.norm("attn_sub_norm", self._widths["attn_q"])
        made["attn_output"] = make.linear("attn_output", self._widths["attn_q"], make.width)
        return made

    def _head_norm(self, make: Make, name: str) -> nnx.Module:
        """Makes the norm of queries or keys: `name` is their projection, "attn_q" or "attn_k"."""
        width = self._widths[name]
        if self.qk_norm == "each":
            heads = width // self.head_width
            return make.layer_norms(f"{name}_norm", heads, self.head_width)
        return make.norm(f"{name}_norm", self.head_width if self.qk_norm == "head" else width)

    def init_state(self, batch: int, length: int, dtype) -> KVState | NoState:
        """Makes an empty KV cache; with a window, a ring buffer unless later layers read it.

        Without a causal mask, all tokens are computed at once and the layer needs no state.
        """
        if self.source is not None or not self.causal:
            return NoState()
        sizes = batch, self.kv_heads, self.head_width, length
        return KVState.zeros(*sizes, dtype, window=None if self.lends else self.window)

    def __call__(self, layer, x_BTD, norm, tokens: Tokens, state: Any):
        """Computes attention before the output projection, [B, T, N * H], and the new KV cache."""
        if self.source is not None:
            out = self._attend_to_source(layer, x_BTD, norm, tokens, state)
            return self._finished(layer, out, None), NoState()
        heads, gate, table, rope, norms = self._heads(layer, x_BTD, norm, tokens)
        if state is None and self.lends:
            batch, length, *_ = x_BTD.shape
            state = self.init_state(batch, length, x_BTD.dtype)
        out, state = attend_to_new(
            *heads,
            table,
            rope,
            state,
            tokens.starts_B,
            self._rule(layer, x_BTD.shape[1] if state is None else state.length),
            norms=norms,
            numerics=layer.numerics,
            lengths_B=tokens.lengths_B,
            visible=tokens.visible,
        )
        return self._finished(layer, out, gate), state

    def _heads(self, layer, x_BTD, norm, tokens: Tokens):
        """Computes what `attend_to_new` takes.

        Returns q, k and v by heads; the gate of the result, or None; and what is left to do with q
        and k: the table and the configuration of a rotation, and norms, None each if it is done.
        """
        q_BTNH, k_BTKH, v_BTKH, gate = self._project(layer, x_BTD, norm)
        table, rope = self._table(tokens), self.rope
        if rope is not None and self.rotates_first:
            q_BTNH, k_BTKH = (apply_rope(heads, table, rope) for heads in (q_BTNH, k_BTKH))
            table = rope = None
        q_BTNH, k_BTKH, norms = self._norm(layer, q_BTNH, k_BTKH, tokens)
        if self.v_norm:
            v_BTKH = rms_norm(v_BTKH, None, layer.config.norms.epsilon)
        return (q_BTNH, k_BTKH, v_BTKH), gate, table, rope, norms

    def operands(self, layer, x_BTD, norm, tokens: Tokens, state: KVState | None = None):
        """Computes what attention reads where the tokens are the whole text.

        Args:
            layer: The layer with the weights.
            x_BTD: The residual stream.
            norm: The norm before the mixer, or None.
            tokens: Positions and lengths.
            state: With a source, the new state of that layer.

        Returns:
            Queries [B, T, N, H] and the keys and values, all normed and rotated; the rule.
        """
        if self.source is not None:
            assert state is not None
            q_BTNH, _ = self._source_queries(layer, x_BTD, norm, tokens)
            return q_BTNH, state, self._rule(layer, state.length)
        (q_BTNH, k_BTKH, v_BTKH), _, table, rope, norms = self._heads(layer, x_BTD, norm, tokens)
        if norms is not None:
            q_BTNH, k_BTKH = norms[0](q_BTNH), norms[1](k_BTKH)
        if rope is not None:
            q_BTNH, k_BTKH = (apply_rope(heads, table, rope) for heads in (q_BTNH, k_BTKH))
        return q_BTNH, KVState.of(k_BTKH, v_BTKH), self._rule(layer, x_BTD.shape[1])

    def _finished(self, layer, out, gate):
        """Applies the gate and the norm to the result of attention.

        Without gate and norm, the result is returned unchanged, because a kernel may already have
        quantised it for the projection.
        """
        out = out if gate is None else self._gated(array_of(out), gate)
        return layer.attn_sub_norm(array_of(out)) if self.sub_norm else out

    def _attend_to_source(self, layer, x_BTD, norm, tokens: Tokens, state: KVState):
        """Attends to the KV cache of another layer, which already contains the new tokens."""
        q_BTNH, gate = self._source_queries(layer, x_BTD, norm, tokens)
        rule = self._rule(layer, state.length)
        out_BTNH = cached_attention(
            q_BTNH,
            state,
            tokens.starts_B,
            rule,
            visible=tokens.visible,
            backend=layer.numerics.backend,
        )
        out_BTD = out_BTNH.reshape(*x_BTD.shape[:2], -1)
        return out_BTD if gate is None else self._gated(out_BTD, gate)

    def _source_queries(self, layer, x_BTD, norm, tokens: Tokens):
        """Computes the queries to the state of another layer, and the gate or None."""
        q_BTNH, _, _, gate = self._project(layer, x_BTD, norm)
        if self.rope is not None and self.rotates_first:
            q_BTNH = apply_rope(q_BTNH, self._table(tokens), self.rope)
        if self.qk_norm is not None:
            q_BTNH = self._normed(layer, "attn_q_norm", q_BTNH)
        q_BTNH = self._sharpened(q_BTNH, tokens)
        if self.rope is not None and not self.rotates_first:
            q_BTNH = apply_rope(q_BTNH, self._table(tokens), self.rope)
        return q_BTNH, gate

    def _project(self, layer, x_BTD, norm):
        """Computes q, k and v by heads, and the gate or None; k and v are None with a source."""
        names = list(self._projections())
        linears = [getattr(layer, name) for name in names]
        found = dict(zip(names, products(x_BTD, linears, norm=norm)))
        if self.fused_qkv:
            ends = [self._query_width, self._query_width + self._widths["attn_k"]]
            q, k, v = jnp.split(found["attn_qkv"], ends, axis=-1)
        else:
            q, k = found["attn_q"], found.get("attn_k")
            v = k if self.v_from_k else found.get("attn_v")
        (B, T), H = x_BTD.shape[:2], self.head_width
        gate = found.get("attn_gate")
        if self.gate == "query":
            pairs = q.reshape(B, T, self.heads, 2, H)
            q, gate = pairs[..., 0, :], pairs[..., 1, :]
        if self.clamp is not None:
            limit = jnp.asarray(self.clamp, q.dtype)
            q, k, v = (
                None if part is None else jnp.clip(part, -limit, limit) for part in (q, k, v)
            )
        heads = (None if part is None else part.reshape(B, T, -1, H) for part in (q, k, v))
        return *heads, gate

    def _norm(self, layer, q_BTNH, k_BTKH, tokens: Tokens):
        """Normalises queries and keys, and applies the temperature to queries.

        Norms directly before the rotation are left to `attend_to_new`, where a kernel can fuse
        them with the rotation.

        Returns:
            The queries, the keys, and the norms that are left to `attend_to_new`, or None.
        """
        if self.qk_norm is None:
            return self._sharpened(q_BTNH, tokens), k_BTKH, None
        if self.qk_norm == "head" and self.temperature is None:
            return q_BTNH, k_BTKH, (layer.attn_q_norm, layer.attn_k_norm)
        q_BTNH = self._sharpened(self._normed(layer, "attn_q_norm", q_BTNH), tokens)
        return q_BTNH, self._normed(layer, "attn_k_norm", k_BTKH), None

    def _normed(self, layer, name: str, heads):
        if self.qk_norm == "unit":
            return rms_norm(heads, None, layer.config.norms.epsilon)
        norm = getattr(layer, name)
        shape = (*heads.shape[:2], -1) if self.qk_norm == "width" else heads.shape
        return norm(heads.reshape(shape)).reshape(heads.shape)

    def _sharpened(self, q_BTNH, tokens: Tokens):
        if self.temperature is None:
            return q_BTNH
        return self.temperature.sharpen(q_BTNH, tokens.positions_BT)

    def _table(self, tokens: Tokens) -> Any:
        if tokens.rope is not None or self.rope is None:
            return tokens.rope
        return rope_table(tokens.positions_BT, self.rope)

    def _gated(self, out_BTD, gate):
        """Multiplies the result by the gate, which has one number per element or per head."""
        shape = *out_BTD.shape[:2], self.heads, -1
        function = jax.nn.sigmoid if self.gate_function == "sigmoid" else jax.nn.softplus
        gate = function(gate.astype(jnp.float32).reshape(shape))
        gated = out_BTD.astype(jnp.float32).reshape(shape) * gate
        return gated.reshape(out_BTD.shape).astype(out_BTD.dtype)

    def workspace(self, tokens: int, slots: int) -> int:
        """Counts queries, keys, values and result, and the scores twice."""
        return tokens * self.heads * (4 * self.head_width + 2 * slots)
