"""Attention over a KV cache on a CPU, and the update of the cache: `attention.cc` in JAX.

Shapes: q [B, T, N, H], keys [B, K, H, S], values [B, K, S, H], all float32; starts [B], int32.
The functions belong to the library that `library.load` loaded.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import AttentionRule
from pallas_kernels.attention.checks import check_ring, require_kernel_rule


def attend(
    q_BTNH, keys, values, starts_B, rule: AttentionRule, ring: bool = False, filled_B=None
) -> jax.Array:
    """Attention of T new tokens to the slots that the rule shows to them.

    Args:
        q_BTNH: The queries. Token t of sequence b is at position starts_B[b] + t.
        keys: Keys of all slots, those of the new tokens among them.
        values: Values of all slots.
        starts_B: The position of the first new token of each sequence.
        rule: How to attend: `scale`, `causal`, `window`, `soft_cap` and `sinks_N`.
        ring: Whether the slots are a ring buffer: the token at position p is in slot p % S.
            Otherwise it is in slot p.
        filled_B: int32, how many slots of each sequence hold tokens, for a rule that is not causal.
            Default: starts_B + T. No query sees others.

    Returns:
        The attention [B, T, N, H]. A query that sees no slot gets zeros.

    Raises:
        ValueError: Operands that do not fit, or a rule that makes no sense.
        NotImplementedError: A rule with chunks or ALiBi.
    """
    require_kernel_rule(rule)
    check(q_BTNH, keys, values, starts_B)
    if ring:
        check_ring(values.shape[2], q_BTNH.shape[1], rule)
    sinks = _checked_sinks(rule, q_BTNH.shape[2])
    filled_B = _checked_filled(filled_B, starts_B, rule)
    call = jax.ffi.ffi_call(
        "rocmforge_attend",
        jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32),
        vmap_method="sequential",
    )
    return call(
        q_BTNH,
        keys,
        values,
        starts_B,
        filled_B,
        sinks,
        scale=np.float32(rule.scale),
        causal=np.bool_(rule.causal),
        window=np.int64(rule.window or 0),
        soft_cap=np.float32(rule.soft_cap or 0),
        ring=np.bool_(ring),
    )


def _checked_filled(filled_B, starts_B, rule: AttentionRule) -> jax.Array:
    """Returns the filled slots, int32 [B], or an empty array for the default."""
    if filled_B is None:
        return jnp.zeros((0,), jnp.int32)
    if rule.causal or filled_B.shape != starts_B.shape or filled_B.dtype != jnp.int32:
        raise ValueError(
            f"filled_B is {filled_B.dtype} {list(filled_B.shape)} for {list(starts_B.shape)} starts"
            f" and causal={rule.causal}: it must be int32, one for each start, without causal"
        )
    return filled_B


def _checked_sinks(rule: AttentionRule, heads: int) -> jax.Array:
    """Returns the sinks, float32 [heads], or an empty array for a rule without sinks."""
    if rule.sinks_N is None:
        return jnp.zeros((0,), jnp.float32)
    if rule.sinks_N.shape != (heads,):
        raise ValueError(f"sinks_N has shape {list(rule.sinks_N.shape)}: expected [{heads}]")
    return rule.sinks_N.astype(jnp.float32)


def rotate_and_store(
    q_BTNH, k_BTKH, v_BTKH, cos_BTR, sin_BTR, keys, values, starts_B, *, interleaved: bool
) -> tuple[jax.Array, ...]:
    """Rotates queries and keys of T new tokens and writes keys and values into the cache.

    The cache is updated in place where XLA can. Tokens beyond the cache make the call fail.

    Args:
        q_BTNH: The queries.
        k_BTKH: The keys of the new tokens.
        v_BTKH: The values of the new tokens.
        cos_BTR: Cosines of the angles of each token; the first 2 R elements of a head are rotated.
            R may be 0.
        sin_BTR: Sines of the same angles.
        keys: The keys of the cache.
        values: The values of the cache.
        starts_B: The slot of the first new token of each sequence.
        interleaved: Whether a pair that is rotated consists of neighbours.

    Returns:
        The rotated queries, the keys and the values of the updated cache.

    Raises:
        ValueError: Operands that do not fit.
    """
    check(q_BTNH, keys, values, starts_B)
    if k_BTKH.shape != v_BTKH.shape or k_BTKH.shape != (
        *q_BTNH.shape[:2],
        keys.shape[1],
        q_BTNH.shape[3],
    ):
        raise ValueError(
            f"k is {list(k_BTKH.shape)}, v {list(v_BTKH.shape)}, for q {list(q_BTNH.shape)} and"
            f" keys {list(keys.shape)}"
        )
    if (
        cos_BTR.shape != sin_BTR.shape
        or cos_BTR.shape[:2] != q_BTNH.shape[:2]
        or 2 * cos_BTR.shape[2] > q_BTNH.shape[3]
    ):
        raise ValueError(
            f"cos is {list(cos_BTR.shape)}, sin {list(sin_BTR.shape)}, for q {list(q_BTNH.shape)}"
        )
    outputs = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (q_BTNH, keys, values)]
    call = jax.ffi.ffi_call(
        "rocmforge_rotate_and_store",
        outputs,
        input_output_aliases={5: 1, 6: 2},
        vmap_method="sequential",
    )
    return tuple(
        call(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            cos_BTR,
            sin_BTR,
            keys,
            values,
            starts_B,
            interleaved=np.bool_(interleaved),
        )
    )


def check(q_BTNH, keys, values, starts_B) -> None:
    """Raises ValueError, with the shapes, for operands that do not fit."""
    (B, T, N, H), (_, K, _, S) = q_BTNH.shape, keys.shape
    shapes = (
        keys.shape == (B, K, H, S)
        and values.shape == (B, K, S, H)
        and starts_B.shape == (B,)
        and K > 0
        and N % K == 0
        and T <= S
    )
    dtypes = [str(a.dtype) for a in (q_BTNH, keys, values, starts_B)]
    if not shapes or dtypes != ["float32"] * 3 + ["int32"]:
        operands = [
            f"{dtype} {list(a.shape)}" for dtype, a in zip(dtypes, (q_BTNH, keys, values, starts_B))
        ]
        raise ValueError(
            "attention takes float32 q, keys, values and int32 starts that fit, got"
            f" {', '.join(operands)}"
        )
