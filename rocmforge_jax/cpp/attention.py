"""Attention over a cache on a CPU, and what puts new tokens into it: `attention.cc` as JAX
functions.

Shapes as in `nn`: q [B, T, N, H], keys [B, K, H, S], values [B, K, S, H], all float32; starts int32
[B]. A library that `library.load` has loaded provides them.
"""

import jax
import jax.numpy as jnp
import numpy as np


def attend(q_BTNH, keys, values, starts_B, *, scale: float) -> jax.Array:
    """Attention of T tokens, whose keys and values the cache holds from slot starts_B[b] on: each
    sees the slots up to its own.
    """
    check(q_BTNH, keys, values, starts_B)
    call = jax.ffi.ffi_call(
        "rocmforge_attend",
        jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32),
        vmap_method="sequential",
    )
    return call(q_BTNH, keys, values, starts_B, scale=np.float32(scale))


def rotate_and_store(
    q_BTNH, k_BTKH, v_BTKH, cos_BTR, sin_BTR, keys, values, starts_B, *, interleaved: bool
) -> tuple[jax.Array, ...]:
    """-> (q rotated, keys and values with the T tokens in them from slot starts_B[b] on), in the
    place of the old ones where XLA can.

    Tokens beyond the cache fail the call.
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
    """ValueError, with the shapes, for operands that do not fit."""
    (B, T, N, H), (_, K, _, S) = q_BTNH.shape, keys.shape
    shapes = (
        keys.shape == (B, K, H, S)
        and values.shape == (B, K, S, H)
        and starts_B.shape == (B,)
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
