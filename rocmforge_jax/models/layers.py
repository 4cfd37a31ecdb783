"""One layer of a decoder: attention and feed-forward.

Submodules carry the names of the file's tensors, so `blk.0.attn_q.weight` is
`decoder.blk[0].attn_q.kernel`.
"""

import functools

import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Numerics
from rocmforge_jax.models.config import DecoderConfig, MoEConfig
from rocmforge_jax.nn import (
    AttentionRule,
    Experts,
    Gate,
    KVState,
    Linear,
    RMSNorm,
    Routing,
    ScalarGate,
    attend_to_new,
    choose_experts,
    gated,
    mixture,
    products,
)


class Block(nnx.Module):
    """Attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, numerics: Numerics, rngs: nnx.Rngs | None):
        self.config, self.numerics = config, numerics
        self._init_attention(functools.partial(Linear, numerics=numerics, rngs=rngs))
        self._init_feed_forward(rngs)

    def _init_attention(self, linear):
        config = self.config
        q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
        self.attn_norm = norm_of(config, config.width)
        if config.fused_qkv:
            self.attn_qkv = linear(config.width, q + 2 * kv, use_bias=config.qkv_bias)
        else:
            self.attn_q = linear(config.width, q, use_bias=config.qkv_bias)
            self.attn_k = linear(config.width, kv, use_bias=config.qkv_bias)
            self.attn_v = linear(config.width, kv, use_bias=config.qkv_bias)
        if config.qk_norm:
            self.attn_q_norm = norm_of(config, config.head_width)
            self.attn_k_norm = norm_of(config, config.head_width)
        self.attn_output = linear(q, config.width)
        self.post_attention_norm = norm_of(config, config.width) if config.post_norms else None

    def _init_feed_forward(self, rngs):
        config = self.config
        self.ffn_norm = norm_of(config, config.width)
        if config.moe:
            self._init_experts(config.moe, rngs)
        else:
            linear = functools.partial(Linear, numerics=self.numerics, rngs=rngs)
            if not config.fused_gate_up:
                self.ffn_gate = linear(config.width, config.hidden)
            self.ffn_up = linear(config.width, config.hidden * (2 if config.fused_gate_up else 1))
            self.ffn_down = linear(config.hidden, config.width)
        self.post_ffw_norm = norm_of(config, config.width) if config.post_norms else None

    def _init_experts(self, moe: MoEConfig, rngs):
        width = self.config.width
        linear = functools.partial(Linear, numerics=self.numerics, rngs=rngs)
        stack = functools.partial(Experts, moe.experts, numerics=self.numerics, rngs=rngs)
        self.ffn_gate_inp = linear(width, moe.experts)
        self.ffn_gate_exps = stack(width, moe.hidden)
        self.ffn_up_exps = stack(width, moe.hidden)
        self.ffn_down_exps = stack(moe.hidden, width)
        if moe.shared_hidden:
            self.ffn_gate_inp_shexp = ScalarGate(width, rngs=rngs)
            self.ffn_gate_shexp = linear(width, moe.shared_hidden)
            self.ffn_up_shexp = linear(width, moe.shared_hidden)
            self.ffn_down_shexp = linear(moe.shared_hidden, width)

    def __call__(self, x_BTD, rope, cache: KVState | None = None, starts_B=None):
        """Computes the layer.

        Args:
            x_BTD: The residual stream.
            rope: The `rope_table` of the tokens' positions.
            cache: Of this layer, or None: then the tokens see one another alone.
            starts_B: int32, the slot of each sequence's first token.

        Returns:
            The residual stream, and the cache with the T tokens in it, or None.
        """
        attended, cache = self.attention(x_BTD, rope, cache, starts_B)
        x_BTD = _add(x_BTD, attended, self.attn_output, self.post_attention_norm)
        if (moe := self.config.moe) is None:
            return _add(x_BTD, self._hidden(x_BTD), self.ffn_down, self.post_ffw_norm), cache
        fed_BTD = self._experts(moe, x_BTD.reshape(-1, self.config.width)).reshape(x_BTD.shape)
        return x_BTD + (self.post_ffw_norm or _same)(fed_BTD), cache

    def attention(self, x_BTD, rope, cache, starts_B):
        """Computes attention [B, T, N * H] before the output projection, and the cache."""
        norms = (self.attn_q_norm, self.attn_k_norm) if self.config.qk_norm else None
        rule = AttentionRule(self.config.head_width**-0.5)
        q_BTNH, k_BTKH, v_BTKH = self._qkv(x_BTD)
        return attend_to_new(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            rope,
            self.config.rope,
            cache,
            starts_B,
            rule,
            norms=norms,
            numerics=self.numerics,
        )

    def _qkv(self, x_BTD):
        config = self.config
        if config.fused_qkv:
            q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
            (fused,) = products(x_BTD, [self.attn_qkv], norm=self.attn_norm)
            parts = jnp.split(fused, [q, q + kv], axis=-1)
        else:
            linears = [self.attn_q, self.attn_k, self.attn_v]
            parts = products(x_BTD, linears, norm=self.attn_norm)
        return [part.reshape(*part.shape[:2], -1, config.head_width) for part in parts]

    def _hidden(self, x_BTD):
        """Computes the hidden layer of the feed-forward, [B, T, F]."""
        if self.config.fused_gate_up:
            (fused,) = products(x_BTD, [self.ffn_up], norm=self.ffn_norm)
            gate, up = jnp.split(fused, 2, axis=-1)
            return gated(gate, up)
        return products(x_BTD, [Gate(self.ffn_gate, self.ffn_up)], norm=self.ffn_norm)[0]

    def _experts(self, moe: MoEConfig, x_TD):
        norm = self.ffn_norm
        routing = Routing(moe.used, "softmax", moe.renormalize)
        weights, experts = choose_experts(x_TD, self.ffn_gate_inp, routing, norm=norm)
        stacks = self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps
        out_TD = mixture(x_TD, weights, experts, *stacks, norm=norm)
        if moe.shared_hidden:
            shared = Gate(self.ffn_gate_shexp, self.ffn_up_shexp)
            (hidden,) = products(x_TD, [shared], norm=norm)
            (shared_TD,) = products(hidden, [self.ffn_down_shexp])
            out_TD = out_TD + self.ffn_gate_inp_shexp(norm(x_TD)) * shared_TD
        return out_TD


def _add(x_BTD, y, linear, post_norm):
    """Computes x + linear(y), normed before the sum where there is a norm."""
    if post_norm is None:
        return products(y, [linear], residual=x_BTD)[0]
    return x_BTD + post_norm(products(y, [linear])[0])


def _same(x):
    return x


def norm_of(config: DecoderConfig, width: int) -> RMSNorm:
    """Makes an RMSNorm with the epsilon of a model."""
    return RMSNorm(width, epsilon=config.norm_epsilon)
