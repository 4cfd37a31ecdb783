"""Grouped-query attention, written once: `vmap` over the KV heads makes MHA, GQA and MQA the same code with other ratios."""

import jax
import jax.numpy as jnp

from rocmforge_jax.nn.cache import LayerCache

#: XLA addresses arrays with 32-bit elements counts in places; no operand of attention may have more elements.
MAX_ELEMENTS = 2**31 - 1


def causal_mask(positions_BT, length: int):
    """Which of `length` slots a query at each position sees: bool [B, T, S], slot s for a query at position p if s <= p."""
    return jnp.arange(length)[None, None] <= positions_BT[..., None]


def attend(q_BTNH, cache: LayerCache, mask_BTS, *, scale: float | None = None):
    """softmax(q k^T * scale + mask) v over the slots of a cache -> [B, T, N, H] in q's dtype.

    Query head n reads KV head n // G. Scores and softmax are float32 whatever the cache's dtype, which is never cast as a whole.
    A query that sees no slot gets the mean of all values. scale: 1/sqrt(H) unless given.
    """
    B, T, N, H = q_BTNH.shape
    K = cache.keys.shape[1]
    scale = H**-0.5 if scale is None else scale
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    dot = lambda spec, a, b: jnp.einsum(spec, a.astype(b.dtype), b, precision="highest", preferred_element_type=jnp.float32)

    def one_group(q_TGH, keys_HS, values_SH, mask_TS):
        scores = dot("tgh,hs->tgs", q_TGH, keys_HS) * jnp.float32(scale)
        scores = jnp.where(mask_TS[:, None], scores, jnp.finfo(jnp.float32).min)
        return dot("tgs,sh->tgh", jax.nn.softmax(scores, axis=-1), values_SH)

    over_groups = jax.vmap(one_group, in_axes=(0, 0, 0, None))
    out_BKTGH = jax.vmap(over_groups)(q_BKTGH, cache.keys, cache.values, mask_BTS)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def dot_product_attention(q, k, v, mask=None, *, scale: float | None = None):
    """Attention of q [B, T, N, H] over k, v [B, S, K, H], N a multiple of K -> [B, T, N, H]. mask: bool [B, T, S] or None."""
    validate_attention_dims(q, k, v, mask)
    if mask is None:
        mask = jnp.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    return attend(q, LayerCache.of(k, v), mask, scale=scale)


def validate_attention_dims(q, k, v, mask=None) -> None:
    """Check q [B, T, N, H], k and v [B, S, K, H], mask [B, T, S] or None: arrays, or anything with a shape, or shapes.

    ValueError names the operands and both numbers. Nothing is computed, so it costs nothing under jit.
    """
    q, k, v = (_checked_shape(name, x, "4 axes [batch, length, heads, head width]", 4) for name, x in (("q", q), ("k", k), ("v", v)))
    for name, other in (("k", k), ("v", v)):
        if other[0] != q[0]:
            raise ValueError(f"q has batch {q[0]}, {name} has {other[0]}: they must be equal")
        if other[3] != q[3]:
            raise ValueError(f"q has head width {q[3]}, {name} has {other[3]}: they must be equal")
    for axis, what in ((1, "length"), (2, "heads")):
        if k[axis] != v[axis]:
            raise ValueError(f"k has {what} {k[axis]}, v has {v[axis]}: they must be equal")
    if q[2] % k[2]:
        raise ValueError(f"q has {q[2]} heads, k has {k[2]}: heads must be a multiple of KV heads")
    scores = q[0] * q[2] * q[1] * k[1]
    if scores > MAX_ELEMENTS:
        raise ValueError(
            f"attention of {q[1]} queries over {k[1]} slots, {q[2]} heads and batch {q[0]} has {scores} scores, the limit is {MAX_ELEMENTS}"
        )
    if mask is not None:
        if getattr(mask, "dtype", bool) != bool:
            raise ValueError(f"mask must be bool, true where a query sees a slot, got {mask.dtype}")
        mask = _checked_shape("mask", mask, "3 axes [batch, queries, slots]", 3)
        if mask != (q[0], q[1], k[1]):
            raise ValueError(f"mask has shape {list(mask)}, q and k need {[q[0], q[1], k[1]]}")


def _checked_shape(name, x, axes, ndim):
    shape = tuple(getattr(x, "shape", x))
    if len(shape) != ndim:
        raise ValueError(f"{name} needs {axes}, got {len(shape)}: {list(shape)}")
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(f"{name} has a size that is no positive integer: {list(shape)}")
    elements = 1
    for size in shape:
        elements *= size
    if elements > MAX_ELEMENTS:
        raise ValueError(f"{name} of shape {list(shape)} has {elements} elements, the limit is {MAX_ELEMENTS}")
    return shape
