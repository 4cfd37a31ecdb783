"""Attention over a cache in plain jnp: what the kernels must equal, and what stands in for them on
any device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.rule import LOG2_E, LOWEST, Scoring


def decode(q_BNH, keys_BKHS, values_BKSH, lengths_B, sinks_N, scoring: Scoring):
    """-> [B, N, H] in q's dtype: prefill of the last token."""
    return prefill(q_BNH[:, None], keys_BKHS, values_BKSH, lengths_B - 1, sinks_N, scoring)[:, 0]


def prefill(q_BTNH, keys_BKHS, values_BKSH, starts_B, sinks_N, scoring: Scoring):
    """-> [B, T, N, H] in q's dtype.

    A KV group shares its keys and values, which are neither repeated nor cast.
    """
    (B, T, N, H), (K, S) = q_BTNH.shape, values_BKSH.shape[1:3]
    q_BKTGH = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4)
    sinks_KG = (
        jnp.full((K, N // K), -jnp.inf, jnp.float32)
        if sinks_N is None
        else sinks_N.reshape(K, N // K)
    )
    positions_BT = starts_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
    seen_BTS = scoring.sees(positions_BT[..., None], jnp.arange(S, dtype=jnp.int32)[None, None])

    def group(q, keys, values, sinks, seen):
        return _group(q, keys, values, sinks, seen, scoring)

    groups = jax.vmap(jax.vmap(group, in_axes=(0, 0, 0, 0, None)), in_axes=(0, 0, 0, None, 0))
    out_BKTGH = groups(q_BKTGH, keys_BKHS, values_BKSH, sinks_KG, seen_BTS)
    return out_BKTGH.transpose(0, 2, 1, 3, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def _group(q_TGH, keys_HS, values_SH, sinks_G, seen_TS, scoring):
    """One KV head and its G query heads -> float32 [T, G, H]; zeros for a query that sees nothing."""

    def dot(spec, a, b):
        return jnp.einsum(
            spec, a.astype(b.dtype), b, precision="highest", preferred_element_type=jnp.float32
        )

    exponents = jnp.where(
        seen_TS[:, None], scoring.exponents(dot("tgh,hs->tgs", q_TGH, keys_HS)), -jnp.inf
    )
    sinks = sinks_G[None, :, None] * np.float32(LOG2_E)
    highest = jnp.maximum(jnp.maximum(exponents.max(axis=-1, keepdims=True), sinks), LOWEST)
    weights = jnp.exp2(exponents - highest)
    total = weights.sum(axis=-1, keepdims=True) + jnp.exp2(sinks - highest)
    return dot("tgs,sh->tgh", weights, values_SH) / jnp.where(total > 0, total, 1)
