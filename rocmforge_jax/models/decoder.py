"""The decoder that every architecture here is a setting of: pre-norm, rotary attention, gated feed-forward.

Submodules carry the names of the file's tensors, so `blk.0.attn_q.weight` is `decoder.blk[0].attn_q.kernel`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import Cache, Embedding, LayerCache, Linear, RMSNorm, apply_rope, attend, causal_mask, rope_table, swiglu


class Block(nnx.Module):
    """One layer: attention and feed-forward, each normed before and added to the residual stream."""

    def __init__(self, config: DecoderConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        linear = lambda *shape, use_bias=False: Linear(*shape, use_bias=use_bias, dtype=dtype, rngs=rngs)
        width, head = config.width, config.head_width
        self.config = config
        self.attn_norm = RMSNorm(width, epsilon=config.norm_epsilon)
        self.attn_q = linear(width, config.heads * head, use_bias=config.qkv_bias)
        self.attn_k = linear(width, config.kv_heads * head, use_bias=config.qkv_bias)
        self.attn_v = linear(width, config.kv_heads * head, use_bias=config.qkv_bias)
        self.attn_output = linear(config.heads * head, width)
        self.ffn_norm = RMSNorm(width, epsilon=config.norm_epsilon)
        self.ffn_gate = linear(width, config.hidden)
        self.ffn_up = linear(width, config.hidden)
        self.ffn_down = linear(config.hidden, width)

    def __call__(self, x_BTD, rope, mask_BTS, cache: LayerCache | None, starts_B):
        """-> (x_BTD, the cache with the T new tokens in it, or None)."""
        attended, cache = self.attention(self.attn_norm(x_BTD), rope, mask_BTS, cache, starts_B)
        x_BTD = x_BTD + attended
        return x_BTD + self.feed_forward(self.ffn_norm(x_BTD)), cache

    def attention(self, x_BTD, rope, mask_BTS, cache, starts_B):
        config = self.config
        heads = lambda y: y.reshape(*y.shape[:2], -1, config.head_width)
        q_BTNH = apply_rope(heads(self.attn_q(x_BTD)), rope, config.rope)
        k_BTKH = apply_rope(heads(self.attn_k(x_BTD)), rope, config.rope)
        v_BTKH = heads(self.attn_v(x_BTD))
        cache = None if cache is None else cache.write(k_BTKH, v_BTKH, starts_B)
        out_BTNH = attend(q_BTNH, LayerCache.of(k_BTKH, v_BTKH) if cache is None else cache, mask_BTS)
        return self.attn_output(out_BTNH.reshape(*x_BTD.shape[:2], -1)), cache

    def feed_forward(self, x_BTD):
        return self.ffn_down(swiglu(x_BTD, self.ffn_gate.kernel, self.ffn_up.kernel))


class Decoder(nnx.Module):
    """Token ids to logits.

    `dtype` is what activations and the cache are computed in; weights keep their own. A fresh decoder has random weights in
    float32 and can be trained; `rocmforge_jax.load` gives one with a file's.
    """

    def __init__(self, config: DecoderConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.token_embd = Embedding(config.vocabulary, config.width, rngs=rngs)
        self.blk = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.output_norm = RMSNorm(config.width, epsilon=config.norm_epsilon)
        self.output = None if config.tied else Linear(config.width, config.vocabulary, rngs=rngs)

    def init_cache(self, batch: int, length: int, dtype=None) -> Cache:
        """An empty cache for `batch` sequences of up to `length` tokens, on the default device. dtype: the decoder's."""
        config = self.config
        return Cache.zeros(config.layers, batch, config.kv_heads, config.head_width, length, dtype or self.dtype)

    def __call__(self, tokens_BT, cache: Cache | None = None, *, positions_BT=None, lengths_B=None, last_only: bool = False):
        """Logits of the next token after each token, and the cache with these tokens added.

        tokens_BT: integer ids. With a cache they follow on what it holds, and the caller sees to it that
        lengths + T <= cache.length (`dynamic_update_slice` clamps in silence); without one this is a plain causal pass.
        positions_BT: positions for the rotary embedding, default: counted on. lengths_B: how many of the T tokens of each
        sequence are real (the first ones; the rest is padding), default: all. last_only: only the last real token's logits.

        Returns (float32 [B, T, V], or [B, V] with last_only; Cache or None). ValueError for shapes that do not fit.
        """
        _check(tokens_BT, cache, positions_BT, lengths_B)
        B, T = tokens_BT.shape
        starts_B = jnp.zeros((B,), jnp.int32) if cache is None else cache.lengths_B
        slots_BT = starts_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
        mask_BTS = causal_mask(slots_BT, T if cache is None else cache.length)
        rope = rope_table(slots_BT if positions_BT is None else positions_BT, self.config.rope)

        x_BTD, layers = self.token_embd(tokens_BT, self.dtype), []
        for block, layer in zip(self.blk, cache.layers if cache else [None] * len(self.blk)):
            x_BTD, layer = block(x_BTD, rope, mask_BTS, layer, starts_B)
            layers.append(layer)

        added_B = jnp.full((B,), T, jnp.int32) if lengths_B is None else lengths_B.astype(jnp.int32)
        if last_only:
            x_BTD = jnp.take_along_axis(x_BTD, (added_B - 1)[:, None, None], axis=1)[:, 0]
        return self._head(self.output_norm(x_BTD)), cache and Cache(tuple(layers), starts_B + added_B)

    def _head(self, x):
        return self.token_embd.attend(x, jnp.float32) if self.output is None else self.output(x, jnp.float32)


def _check(tokens_BT, cache, positions_BT, lengths_B):
    if tokens_BT.ndim != 2 or not jnp.issubdtype(tokens_BT.dtype, jnp.integer) or 0 in tokens_BT.shape:
        raise ValueError(f"tokens must be integers [batch, tokens], at least one, got {tokens_BT.dtype} {list(tokens_BT.shape)}")
    B, T = tokens_BT.shape
    if cache is not None and cache.batch != B:
        raise ValueError(f"tokens have batch {B}, the cache has {cache.batch}")
    if cache is not None and cache.length < T:
        raise ValueError(f"{T} tokens do not fit a cache of {cache.length} slots")
    for name, array, shape in (("positions", positions_BT, (B, T)), ("lengths", lengths_B, (B,))):
        if array is not None and (array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer)):
            raise ValueError(f"{name} must be integers {list(shape)}, got {array.dtype} {list(array.shape)}")


def param_count(decoder: Decoder) -> int:
    """Weights of a decoder, quantised or not; a tied head counts once."""
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(decoder)), is_leaf=lambda x: hasattr(x, "type_name"))
    return sum(int(jnp.prod(jnp.array(leaf.shape))) for leaf in leaves)
