"""The decoder that every architecture here is a setting of: pre-norm, rotary attention, gated
feed-forward.

Submodules carry the names of the file's tensors, so `blk.0.attn_q.weight` is
`decoder.blk[0].attn_q.kernel`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.once import once
from rocmforge_jax.nn import (
    Cache,
    Embedding,
    Experts,
    LayerCache,
    Linear,
    Product,
    RMSNorm,
    ScalarGate,
    apply_rope,
    array_of,
    attend_to_new,
    causal_attention,
    choose_experts,
    mixture,
    products,
    rope_table,
    silu_gate,
)
from rocmforge_jax.quant import DEFAULT_MODE


class Block(nnx.Module):
    """One layer: attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, activations: str, rngs: nnx.Rngs):
        self.config, self.activations = config, activations
        self._init_attention(rngs)
        self._init_feed_forward(rngs)

    def _init_attention(self, rngs):
        config, linear = self.config, functools.partial(Linear, rngs=rngs)
        q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
        self.attn_norm = _norm(config, config.width)
        if config.fused_qkv:
            self.attn_qkv = linear(config.width, q + 2 * kv, use_bias=config.qkv_bias)
        else:
            self.attn_q = linear(config.width, q, use_bias=config.qkv_bias)
            self.attn_k = linear(config.width, kv, use_bias=config.qkv_bias)
            self.attn_v = linear(config.width, kv, use_bias=config.qkv_bias)
        if config.qk_norm:
            self.attn_q_norm, self.attn_k_norm = (
                _norm(config, config.head_width),
                _norm(config, config.head_width),
            )
        self.attn_output = linear(q, config.width)
        if config.post_norms:
            self.post_attention_norm = _norm(config, config.width)

    def _init_feed_forward(self, rngs):
        config, linear = self.config, functools.partial(Linear, rngs=rngs)
        self.ffn_norm = _norm(config, config.width)
        if config.moe:
            self._init_experts(rngs)
        else:
            if not config.fused_gate_up:
                self.ffn_gate = linear(config.width, config.hidden)
            self.ffn_up = linear(config.width, config.hidden * (2 if config.fused_gate_up else 1))
            self.ffn_down = linear(config.hidden, config.width)
        if config.post_norms:
            self.post_ffw_norm = _norm(config, config.width)

    def _init_experts(self, rngs):
        moe, width = self.config.moe, self.config.width
        self.ffn_gate_inp = Linear(width, moe.experts, rngs=rngs)
        self.ffn_gate_exps = Experts(moe.experts, width, moe.hidden, rngs=rngs)
        self.ffn_up_exps = Experts(moe.experts, width, moe.hidden, rngs=rngs)
        self.ffn_down_exps = Experts(moe.experts, moe.hidden, width, rngs=rngs)
        if moe.shared_hidden:
            self.ffn_gate_inp_shexp = ScalarGate(width, rngs=rngs)
            self.ffn_gate_shexp = Linear(width, moe.shared_hidden, rngs=rngs)
            self.ffn_up_shexp = Linear(width, moe.shared_hidden, rngs=rngs)
            self.ffn_down_shexp = Linear(moe.shared_hidden, width, rngs=rngs)

    def __call__(self, x_BTD, rope, cache: LayerCache | None = None, starts_B=None):
        """-> (x_BTD, the cache with the T new tokens in it from slots starts_B on, or None).

        Without a cache the tokens see one another.
        """
        attended_BTN, cache = self.attention(x_BTD, rope, cache, starts_B)
        x_BTD = self._add(x_BTD, attended_BTN, self.attn_output, "post_attention_norm")
        if not self.config.moe:
            return self._add(x_BTD, self._gated(x_BTD), self.ffn_down, "post_ffw_norm"), cache
        fed_BTD = self._experts(x_BTD).reshape(x_BTD.shape)
        return x_BTD + (self.post_ffw_norm(fed_BTD) if self.config.post_norms else fed_BTD), cache

    def _products(self, x, wanted, norm=None):
        return products(x, wanted, norm=norm, activations=self.activations)

    def _linears(self, x, linears, norm):
        """Each of them at norm(x)."""
        if _fusible(*linears, norm=norm):
            return self._products(x, list(map(_product, linears)), norm)
        x = norm(x)
        return [self._linear(x, linear) for linear in linears]

    def _linear(self, x, linear):
        return linear(x, activations=self.activations) if type(linear) is Linear else linear(x)

    def _add(self, x_BTD, y, linear, post_norm):
        """x + linear(y), normed before the sum where the architecture has such a norm.

        y: an array or Prepared.
        """
        if not _fusible(linear):
            y_BTD = linear(array_of(y))
            return x_BTD + (getattr(self, post_norm)(y_BTD) if self.config.post_norms else y_BTD)
        if self.config.post_norms:
            return x_BTD + getattr(self, post_norm)(self._products(y, [_product(linear)])[0])
        return self._products(y, [_product(linear, residual=x_BTD)])[0]

    def attention(self, x_BTD, rope, cache, starts_B):
        """Normed attention, its heads side by side: [B, T, N * H] or Prepared, before the output
        projection; and the cache.
        """
        q_BTNH, k_BTKH, v_BTKH = self._qkv(x_BTD)
        norms = (self.attn_q_norm, self.attn_k_norm) if self.config.qk_norm else None
        if norms is not None and (
            cache is None or not all(type(norm) is RMSNorm for norm in norms)
        ):
            q_BTNH, k_BTKH, norms = norms[0](q_BTNH), norms[1](k_BTKH), None
        if cache is None:
            q_BTNH, k_BTKH = (
                apply_rope(heads, rope, self.config.rope) for heads in (q_BTNH, k_BTKH)
            )
            from_the_first_B = jnp.zeros(q_BTNH.shape[:1], jnp.int32)
            out_BTNH = causal_attention(q_BTNH, LayerCache.of(k_BTKH, v_BTKH), from_the_first_B)
            return out_BTNH.reshape(*q_BTNH.shape[:2], -1), None
        return attend_to_new(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            rope,
            self.config.rope,
            cache,
            starts_B,
            mode=self.activations,
            norms=norms,
        )

    def _qkv(self, x_BTD):
        config = self.config
        linears = [self.attn_qkv] if config.fused_qkv else [self.attn_q, self.attn_k, self.attn_v]
        parts = self._linears(x_BTD, linears, self.attn_norm)
        if config.fused_qkv:
            q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
            parts = jnp.split(parts[0], [q, q + kv], axis=-1)
        return [part.reshape(*part.shape[:2], -1, config.head_width) for part in parts]

    def _gated(self, x_BTD):
        """The hidden layer of the feed-forward, [B, T, F]."""
        if self.config.fused_gate_up:
            return silu_gate(
                *jnp.split(self._linears(x_BTD, [self.ffn_up], self.ffn_norm)[0], 2, axis=-1)
            )
        if _fusible(self.ffn_gate, self.ffn_up, norm=self.ffn_norm):
            return self._products(
                x_BTD, [Product(self.ffn_gate.kernel, self.ffn_up.kernel)], self.ffn_norm
            )[0]
        return silu_gate(*self._linears(x_BTD, [self.ffn_gate, self.ffn_up], self.ffn_norm))

    def _experts(self, x_BTD):
        """Of what the norm makes of x, [B * T, D]."""
        moe, norm, x_TD = self.config.moe, self.ffn_norm, x_BTD.reshape(-1, self.config.width)
        if not _fusible(norm=norm):
            x_TD, norm = norm(x_TD), None
        how = dict(norm=norm, activations=self.activations)
        weights, experts = choose_experts(
            x_TD, self.ffn_gate_inp, moe.used, renormalize=moe.renormalize, **how
        )
        out_TD = mixture(
            x_TD, weights, experts, self.ffn_gate_exps, self.ffn_up_exps, self.ffn_down_exps, **how
        )
        if moe.shared_hidden:
            hidden = self._products(
                x_TD, [Product(self.ffn_gate_shexp.kernel, self.ffn_up_shexp.kernel)], norm
            )[0]
            shared_TD = self._products(hidden, [Product(self.ffn_down_shexp.kernel)])[0]
            out_TD = (
                out_TD + self.ffn_gate_inp_shexp(x_TD if norm is None else norm(x_TD)) * shared_TD
            )
        return out_TD


def _fusible(*linears, norm=None) -> bool:
    """Whether these are what this file made them: a user may have put others in their place, say
    `nnx.LoRA`.
    """
    return all(type(linear) is Linear for linear in linears) and type(norm) in (RMSNorm, type(None))


def _product(linear: Linear, residual=None) -> Product:
    return Product(linear.kernel, bias=linear.bias, residual=residual)


def _norm(config: DecoderConfig, width: int) -> RMSNorm:
    return RMSNorm(width, epsilon=config.norm_epsilon)


class Decoder(nnx.Module):
    """Token ids to logits.

    `dtype` is what activations and the cache are computed in; weights keep their own. `activations`
    is what kernels turn the inputs of products with quantised weights into, see `quant.matmul`. A
    fresh decoder has random weights in float32 and can be trained; rngs may be None inside
    `nn.only_shapes`. `rocmforge_jax.load` gives one with a file's.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype=jnp.float32,
        activations: str = DEFAULT_MODE,
        rngs: nnx.Rngs | None,
    ):
        self.config, self.dtype, self.activations = config, dtype, activations
        self.token_embd = Embedding(config.vocabulary, config.width, rngs=rngs)
        self.blk = nnx.List(
            [Block(config, activations=activations, rngs=rngs) for _ in range(config.layers)]
        )
        self.output_norm = _norm(config, config.width)
        self.output = None if config.tied else Linear(config.width, config.vocabulary, rngs=rngs)

    def init_cache(self, batch: int, length: int, dtype=None) -> Cache:
        """An empty cache for `batch` sequences of up to `length` tokens, on the default device.

        dtype: the decoder's.
        """
        config = self.config
        return Cache.zeros(
            config.layers, batch, config.kv_heads, config.head_width, length, dtype or self.dtype
        )

    def __call__(
        self,
        tokens_BT,
        cache: Cache | None = None,
        *,
        positions_BT=None,
        lengths_B=None,
        last_only: bool = False,
    ):
        """Logits of the next token after each token, and the cache with these tokens added.

        tokens_BT: integer ids. With a cache they follow on what it holds, and the caller sees to it
        that lengths + T <= cache.length (`dynamic_update_slice` clamps in silence); without one
        this is a plain causal pass. positions_BT: positions for the rotary embedding, default:
        counted on. lengths_B: how many of the T tokens of each sequence are real (the first ones;
        the rest is padding), default: all. last_only: only the last real token's logits.

        Returns (float32 [B, T, V], or [B, V] with last_only; Cache or None). ValueError for shapes
        that do not fit.
        """
        _check(tokens_BT, cache, positions_BT, lengths_B)
        B, T = tokens_BT.shape
        starts_B = jnp.zeros((B,), jnp.int32) if cache is None else cache.lengths_B
        slots_BT = starts_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
        rope = rope_table(slots_BT if positions_BT is None else positions_BT, self.config.rope)

        x_BTD, layers = self.token_embd(tokens_BT, self.dtype), []
        for block, layer in zip(self.blk, cache.layers if cache else [None] * len(self.blk)):
            run = (
                functools.partial(once, block) if type(block) is Block else block
            )  # a user's may do anything
            x_BTD, layer = run(x_BTD, rope, layer, starts_B)
            layers.append(layer)

        added_B = jnp.full((B,), T, jnp.int32) if lengths_B is None else lengths_B.astype(jnp.int32)
        if last_only:
            x_BTD = jnp.take_along_axis(x_BTD, (added_B - 1)[:, None, None], axis=1)[:, 0]
        return self._head(x_BTD), cache and Cache(tuple(layers), starts_B + added_B)

    def _head(self, x):
        if not _fusible(*[] if self.output is None else [self.output], norm=self.output_norm):
            x = self.output_norm(x)
            return (
                x @ self.token_embd.embedding.get_value().T
                if self.output is None
                else self.output(x)
            ).astype(jnp.float32)
        product = (
            Product(self.token_embd.embedding.get_value().T)
            if self.output is None
            else _product(self.output)
        )
        return products(
            x, [product], norm=self.output_norm, dtype=jnp.float32, activations=self.activations
        )[0]


def _check(tokens_BT, cache, positions_BT, lengths_B):
    if (
        tokens_BT.ndim != 2
        or not jnp.issubdtype(tokens_BT.dtype, jnp.integer)
        or 0 in tokens_BT.shape
    ):
        raise ValueError(
            f"tokens must be integers [batch, tokens], at least one, got {tokens_BT.dtype}"
            f" {list(tokens_BT.shape)}"
        )
    B, T = tokens_BT.shape
    if cache is not None and cache.batch != B:
        raise ValueError(f"tokens have batch {B}, the cache has {cache.batch}")
    if cache is not None and cache.length < T:
        raise ValueError(f"{T} tokens do not fit a cache of {cache.length} slots")
    for name, array, shape in (("positions", positions_BT, (B, T)), ("lengths", lengths_B, (B,))):
        if array is not None and (
            array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer)
        ):
            raise ValueError(
                f"{name} must be integers {list(shape)}, got {array.dtype} {list(array.shape)}"
            )


def param_count(decoder: Decoder) -> int:
    """Weights of a decoder, quantised or not; a tied head counts once."""
    leaves = jax.tree.leaves(
        nnx.to_pure_dict(nnx.state(decoder)), is_leaf=lambda x: hasattr(x, "type_name")
    )
    return sum(math.prod(leaf.shape) for leaf in leaves)
