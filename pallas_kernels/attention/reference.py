"""Attention over a KV cache in plain jnp: the reference for the kernels, and their fallback.

The cache is not transposed, cast or copied: `vmap` over the KV groups reads keys and values in
place. Scores and softmax are float32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import checks
from pallas_kernels.attention.rule import LOG2_E, LOWEST, AttentionRule


def ring_positions(newest, slots: int):
    """Return the position of the token in each slot of a ring buffer.

    The token at position p is in slot p % slots.

    Args:
        newest: integers [...], the positions of the newest tokens.
        slots: the number of slots.

    Returns:
        int32 [..., slots]. A negative position means that the slot is empty.
    """
    newest = newest.astype(jnp.int32)[..., None]
    slot = jnp.arange(slots, dtype=jnp.int32).reshape((1,) * (newest.ndim - 1) + (slots,))
    return newest - jnp.mod(newest - slot, jnp.int32(slots))


def decode(q_BNH, keys_BKHS, values_BKSH, lengths_B, rule: AttentionRule, ring: bool = False):
    """Compute the result of `api.decode_attention` without new tokens: [B, N, H] in q's dtype.

    The contents of unfilled slots have no effect, but must be finite.
    """
    arrays = dict(q_BNH=q_BNH, keys_BKHS=keys_BKHS, values_BKSH=values_BKSH, lengths_B=lengths_B)
    checks.check_operands(arrays, rule)
    return _prefill(q_BNH[:, None], keys_BKHS, values_BKSH, lengths_B - 1, rule, ring)[:, 0]


def prefill(
    q_BTNH,
    keys_BKHS,
    values_BKSH,
    starts_B,
    rule: AttentionRule,
    ring: bool = False,
    filled_B=None,
):
    """Compute the result of `api.prefill_attention`: [B, T, N, H] in q's dtype.

    The contents of unfilled slots have no effect, but must be finite. ring: whether the slots are a
    ring buffer (`ring_positions`), whose newest token is the last query's.
    """
    arrays = dict(q_BTNH=q_BTNH, keys_BKHS=keys_BKHS, values_BKSH=values_BKSH, starts_B=starts_B)
    checks.check_operands(arrays, rule, filled_B)
    return _prefill(q_BTNH, keys_BKHS, values_BKSH, starts_B, rule, ring, filled_B)


def _prefill(q_BTNH, keys_BKHS, values_BKSH, starts_B, rule, ring, filled_B=None):
    T, S = q_BTNH.shape[1], values_BKSH.shape[2]
    tokens_BT = jnp.arange(T, dtype=jnp.int32)[None]
    filled_B1 = (starts_B + T if filled_B is None else filled_B).astype(jnp.int32)[:, None]
    own_BT = starts_B.astype(jnp.int32)[:, None] + tokens_BT
    positions_BT = rule.last_seen(starts_B.astype(jnp.int32)[:, None], tokens_BT, filled_B1)
    if ring:
        checks.check_ring(S, T, rule)
        held_BTS = ring_positions(starts_B + (T - 1), S)[:, None]
        seen_BTS = rule.sees(positions_BT[..., None], held_BTS) & (held_BTS >= 0)
    else:
        held_BTS = jnp.arange(S, dtype=jnp.int32)[None, None]
        seen_BTS = rule.sees(positions_BT[..., None], held_BTS)
        if rule.symmetric:
            seen_BTS &= held_BTS < filled_B1[..., None]
    distances_BTS = None
    if rule.alibi is not None:
        distances_BTS = jnp.abs(own_BT[..., None] - held_BTS).astype(jnp.float32)
    return _attend(q_BTNH, keys_BKHS, values_BKSH, seen_BTS, rule, distances_BTS)


def attend(q_BTNH, keys_BKHS, values_BKSH, seen_BTS, rule: AttentionRule, distances_BTS=None):
    """Compute attention of queries to any slots: [B, T, N, H] in q's dtype.

    Args:
        q_BTNH: queries; query head n reads KV head n // (N / K).
        keys_BKHS: keys, of any float dtype.
        values_BKSH: values, of the same dtype.
        seen_BTS: bool, whether a query sees a slot. A query that sees nothing gets zeros.
        rule: only its scale, soft cap, sinks and ALiBi are used.
        distances_BTS: float32, the distances of queries from slots, for a rule with ALiBi.
    """
    arrays = dict(q_BTNH=q_BTNH, keys_BKHS=keys_BKHS, values_BKSH=values_BKSH, seen_BTS=seen_BTS)
    checks.check_operands(arrays, rule)
    return _attend(q_BTNH, keys_BKHS, values_BKSH, seen_BTS, rule, distances_BTS)


def _attend(q_BTNH, keys_BKHS, values_BKSH, seen_BTS, rule, distances_BTS=None):
    (B, T, N, H), K = q_BTNH.shape, keys_BKHS.shape[1]
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    sinks_KG = None
    if rule.sinks_N is not None:
        sinks_KG = rule.sinks_N.astype(jnp.float32).reshape(K, N // K)
    slopes_KG = None
    if distances_BTS is not None:
        slopes_KG = jnp.asarray(rule.slopes(N).reshape(K, N // K))

    def group(q, keys, values, sinks, slopes, seen, distances):
        return _group(q, keys, values, sinks, slopes, seen, distances, rule)

    of_heads = jax.vmap(group, in_axes=(0, 0, 0, 0, 0, None, None))
    groups = jax.vmap(of_heads, in_axes=(0, 0, 0, None, None, 0, 0))
    operands = q_BKTGH, keys_BKHS, values_BKSH, sinks_KG, slopes_KG, seen_BTS, distances_BTS
    out_BKTGH = groups(*operands)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def _group(q_TGH, keys_HS, values_SH, sinks_G, slopes_G, seen_TS, distances_TS, rule):
    """Compute attention of the G query heads of one KV head: float32 [T, G, H]."""
    # `tanh_of_exp2` has no finite gradient for large scores.
    exponents = rule.exponents(_dot("tgh,hs->tgs", q_TGH, keys_HS), tanh=jnp.tanh)
    if slopes_G is not None:
        falls = slopes_G[None, :, None] * distances_TS[:, None]
        exponents = exponents - falls * np.float32(LOG2_E)
    exponents = jnp.where(seen_TS[:, None], exponents, -jnp.inf)
    highest = jnp.maximum(exponents.max(axis=-1, keepdims=True), LOWEST)
    if sinks_G is not None:
        sinks = sinks_G[None, :, None] * np.float32(LOG2_E)
        highest = jnp.maximum(highest, sinks)
    # `highest` cancels out of the result, so it needs no gradient.
    highest = jax.lax.stop_gradient(highest)
    weights = jnp.exp2(exponents - highest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks_G is not None:
        total = total + jnp.exp2(sinks - highest)
    return _dot("tgs,sh->tgh", weights, values_SH) / jnp.where(total > 0, total, 1)


def _dot(spec, a, b):
    """Multiply b with a, rounded to b's dtype; the result is float32."""
    return jnp.einsum(
        spec, a.astype(b.dtype), b, precision="highest", preferred_element_type=jnp.float32
    )
