"""Attention maps beside float64 attention, and beside what the layer itself computes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.models import (
    Attention,
    LatentAttention,
    ParallelMixers,
    ShortConvolution,
    Tokens,
)
from rocmforge_jax.nn import RopeConfig, array_of

PLAIN = Attention(6, 2, 8, RopeConfig(8))
VARIANTS = {
    "plain": {},
    "window": dict(window=5),
    "chunk": dict(chunk=4),
    "soft cap": dict(soft_cap=0.7, scale=1.3),
    "sinks": dict(sinks=True, qk_norm="head"),
    "alibi": dict(alibi=8.0, rope=None),
    "both ways": dict(causal=False, window=5),
    "normed": dict(qk_norm="width", rotates_first=True, v_norm=True),
    "gated": dict(gate="query", clamp=1.0),
    "one KV head": dict(kv_heads=1, fused_qkv=True),
}
IDS = np.random.default_rng(5).integers(0, 61, 19)


def truth(q, k, mixer, sinks):
    """Attention probabilities in float64, [N, T, T], from rotated queries and keys."""
    T, N, H = q.shape
    k = np.repeat(k, N // k.shape[1], axis=1)
    scores = np.einsum("tnh,snh->nts", q, k) * (H**-0.5 if mixer.scale is None else mixer.scale)
    if mixer.soft_cap:
        scores = mixer.soft_cap * np.tanh(scores / mixer.soft_cap)
    t, s = np.mgrid[:T, :T]
    seen = s <= t if mixer.causal else np.ones((T, T), bool)
    if mixer.window:
        seen &= np.abs(t - s) <= (mixer.window // 2 if not mixer.causal else mixer.window - 1)
    if mixer.chunk:
        seen &= t // mixer.chunk == s // mixer.chunk
    if mixer.alibi:  # 6 heads: slopes of 4, and 2 of those of 8 between them
        exponents = np.array([2, 4, 6, 8, 1, 3])
        scores = scores - 2.0 ** -exponents[:, None, None] * np.abs(t - s)
    weights = np.exp(np.where(seen, scores, -np.inf))
    return weights / (weights.sum(-1, keepdims=True) + np.exp(sinks)[:, None, None])


@pytest.mark.parametrize("variant, tokens", [*((one, 19) for one in VARIANTS), ("sinks", 5)])
def test_a_map_is_that_of_the_layer(variant, tokens, decoder_of):
    """The values that the map weighs are the layer's result, so queries and keys are the layer's.

    19 tokens are more than a head is wide, 5 are fewer.
    """
    mixer, ids = dataclasses.replace(PLAIN, **VARIANTS[variant]), IDS[:tokens]
    decoder, sinks = decoder_of(PLAIN, mixer), np.full(6, -np.inf)
    layer = decoder.blk[1]
    if mixer.sinks:
        sinks = np.linspace(-1, 1, 6)
        layer.attn_sinks.kernel[...] = jnp.asarray(sinks, jnp.float32)
    found = rf.explore.attention_map(decoder, ids, 1)
    of = Tokens.first(1, tokens)
    x, _ = decoder.blk[0](decoder.token_embd(jnp.asarray(ids)[None]), of)
    q, held, _ = mixer.operands(layer, x, layer.attn_norm, of)
    q, keys, values = (np.asarray(a[0], np.float64) for a in (q, held.keys, held.values))
    expected = truth(q, keys.transpose(2, 0, 1), mixer, sinks)
    assert found.probabilities.shape == (6, tokens, tokens) and found.heads == tuple(range(6))
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-6)
    share = found.probabilities.sum(-1)
    assert (share < 0.999).all() if mixer.sinks else np.allclose(share, 1, atol=1e-5)

    ungated = dataclasses.replace(mixer, gate=None)
    out = np.einsum("nts,nsh->tnh", expected, np.repeat(values, 6 // mixer.kv_heads, axis=0))
    if mixer.gate is None:
        result, _ = ungated(layer, x, layer.attn_norm, of, None)
        np.testing.assert_allclose(
            np.asarray(array_of(result))[0], out.reshape(tokens, -1), atol=1e-5
        )


def test_layers_that_share_keys_and_values(decoder_of):
    lender = dataclasses.replace(PLAIN, lends=True, window=7)
    borrower = dataclasses.replace(PLAIN, source=0, window=7)
    decoder = decoder_of(lender, borrower)
    found = rf.explore.attention_map(decoder, IDS, 1)
    of = Tokens.first(1, 19)
    x = decoder.token_embd(jnp.asarray(IDS)[None])
    after, state = decoder.blk[0](x, of)
    q, _, _ = borrower.operands(decoder.blk[1], after, decoder.blk[1].attn_norm, of, state)
    keys = np.asarray(state.keys[0], np.float64).transpose(2, 0, 1)
    expected = truth(np.asarray(q[0], np.float64), keys, borrower, np.full(6, -np.inf))
    np.testing.assert_allclose(found.probabilities, expected, atol=2e-6)


def test_attention_beside_another_mixer(decoder_of):
    alone = decoder_of(PLAIN)
    both = decoder_of(ParallelMixers((ShortConvolution(24, 3), PLAIN)))
    for name in ("attn_q", "attn_k", "attn_norm", "token_embd"):
        owners = (both, alone) if name == "token_embd" else (both.blk[0], alone.blk[0])
        setattr(owners[0], name, getattr(owners[1], name))
    maps = [rf.explore.attention_map(model, IDS, 0).probabilities for model in (both, alone)]
    np.testing.assert_allclose(*maps, atol=1e-6)


def test_one_head_and_a_repr(decoder_of):
    decoder = decoder_of(PLAIN)
    every, one = (rf.explore.attention_map(decoder, IDS, 0, head) for head in (None, 4))
    assert one.heads == (4,) and repr(one) == "<AttentionMap of layer 0: 1 heads, 19 x 19 tokens>"
    np.testing.assert_array_equal(one.probabilities, every.probabilities[4:5])


def test_what_has_no_map_is_named(decoder_of):
    latent = LatentAttention(3, 12, 8, 8, RopeConfig(4), 0.3)
    decoder = decoder_of(latent, ShortConvolution(24, 3), None, PLAIN)
    for layer, name in enumerate(("LatentAttention", "ShortConvolution", "no mixer")):
        with pytest.raises(ValueError, match=f"layer {layer} .* {name}.*layers 3 have one"):
            rf.explore.attention_map(decoder, IDS, layer)
    for layer in (-1, 4):
        with pytest.raises(ValueError, match=f"layer .* 0 .* 3, got {layer}"):
            rf.explore.attention_map(decoder, IDS, layer)
    with pytest.raises(ValueError, match="head .* 0 .* 5, got 6"):
        rf.explore.attention_map(decoder, IDS, 3, head=6)

    class Wrapped(nnx.Module):
        pass

    decoder.blk[3] = Wrapped()
    with pytest.raises(TypeError, match="block 3 is a Wrapped"):
        rf.explore.attention_map(decoder, IDS, 3)
