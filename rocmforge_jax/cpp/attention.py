"""Attention over a KV cache on a CPU, and the update of the cache: `attention.cc` in JAX.

Shapes: q [B, T, N, H], keys [B, K, H, S], values [B, K, S, H], all float32; starts [B], int32.
The functions call the library that `library.load` loaded.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import AttentionRule
from pallas_kernels.attention.checks import check_ring, require_kernel_rule
from rocmforge_jax.cpp import partition

#: The axes of operands. Devices may split sequences, and KV heads together with their query heads.
_HEADS, _KEYS, _VALUES, _STARTS = "b T (k g) H", "b k H S", "b k S H", "b"


def attend(
    q_BTNH, keys, values, starts_B, rule: AttentionRule, ring: bool = False, filled_B=None
) -> jax.Array:
    """Computes attention of T new tokens over a KV cache that already contains them.

    Args:
        q_BTNH: The queries. Token t of sequence b is at position starts_B[b] + t.
        keys: The keys of all slots, including the new tokens'.
        values: The values of all slots.
        starts_B: The position of the first new token of each sequence.
        rule: Which slots a query sees, and their weights: `scale`, `causal`, `window`, `soft_cap`
            and `sinks_N`.
        ring: Whether the slots are a ring buffer: the token at position p is in slot p % S.
            Otherwise it is in slot p.
        filled_B: int32, the number of filled slots of each sequence, for a rule that is not causal.
            Default: starts_B + T. Queries see no other slots.

    Returns:
        The attention [B, T, N, H]. A query that sees no slot gets zeros.

    Raises:
        ValueError: The operands do not fit together, or do not fit the rule.
        NotImplementedError: The rule has chunks or ALiBi.
    """
    require_kernel_rule(rule)
    check(q_BTNH, keys, values, starts_B)
    if ring:
        check_ring(values.shape[2], q_BTNH.shape[1], rule)
    operands, axes = [q_BTNH, keys, values, starts_B], [_HEADS, _KEYS, _VALUES, _STARTS]
    if filled_B is not None:
        operands.append(_checked_filled(filled_B, starts_B, rule))
        axes.append(_STARTS)
    if rule.sinks_N is not None:
        operands.append(_checked_sinks(rule.sinks_N, q_BTNH.shape[2]))
        axes.append("(k g)")
    call = _Attend(
        scale=float(rule.scale),
        causal=bool(rule.causal),
        window=rule.window or 0,
        soft_cap=float(rule.soft_cap or 0),
        ring=ring,
        has_filled=filled_B is not None,
    )
    (out,) = partition.call(call, operands, axes, [_HEADS])
    return out


@dataclasses.dataclass(frozen=True)
class _Attend:
    """`rocmforge_attend` as a function of its arrays: see `attend`. 0 means no limit."""

    scale: float
    causal: bool
    window: int
    soft_cap: float
    ring: bool
    has_filled: bool

    def __call__(self, q_BTNH, keys, values, starts_B, *others) -> list[jax.Array]:
        filled, sinks = others[: self.has_filled], others[self.has_filled :]
        filled = filled or (jnp.zeros((0,), jnp.int32),)
        sinks = sinks or (jnp.zeros((0,), jnp.float32),)
        out = jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32)
        call = jax.ffi.ffi_call("rocmforge_attend", out)
        return [
            call(
                q_BTNH,
                keys,
                values,
                starts_B,
                *filled,
                *sinks,
                scale=np.float32(self.scale),
                causal=np.bool_(self.causal),
                window=np.int64(self.window),
                soft_cap=np.float32(self.soft_cap),
                ring=np.bool_(self.ring),
            )
        ]


def _checked_filled(filled_B, starts_B, rule: AttentionRule) -> jax.Array:
    """Returns `filled_B`, or raises ValueError if its shape, its dtype or the rule is wrong."""
    if rule.causal or filled_B.shape != starts_B.shape or filled_B.dtype != jnp.int32:
        raise ValueError(
            f"filled_B is {filled_B.dtype} {list(filled_B.shape)} for {list(starts_B.shape)} starts"
            f" and causal={rule.causal}: it must be int32, one for each start, without causal"
        )
    return filled_B


def _checked_sinks(sinks_N, heads: int) -> jax.Array:
    """Returns the sinks as float32 [heads], or raises ValueError if their shape is wrong."""
    if sinks_N.shape != (heads,):
        raise ValueError(f"sinks_N has shape {list(sinks_N.shape)}: expected [{heads}]")
    return sinks_N.astype(jnp.float32)


def rotate_and_store(
    q_BTNH, k_BTKH, v_BTKH, cos_BTR, sin_BTR, keys, values, starts_B, *, interleaved: bool
) -> tuple[jax.Array, ...]:
    """Rotates queries and keys of T new tokens, and writes keys and values into the cache.

    XLA updates the cache in place if possible. Tokens beyond the cache are an error at run time.

    Args:
        q_BTNH: The queries.
        k_BTKH: The keys of the new tokens.
        v_BTKH: The values of the new tokens.
        cos_BTR: The cosines of the angles of each token. The first 2 R elements of a head are
            rotated. R may be 0.
        sin_BTR: The sines of the same angles.
        keys: The keys of the cache.
        values: The values of the cache.
        starts_B: The slot of the first new token of each sequence.
        interleaved: Whether pair i is the elements 2i and 2i + 1 of a head, and not i and R + i.

    Returns:
        The rotated queries, the keys and the values of the updated cache.

    Raises:
        ValueError: The operands do not fit together.
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
    new, cache = [q_BTNH, k_BTKH, v_BTKH], [keys, values, starts_B]
    angles = [cos_BTR, sin_BTR] if cos_BTR.size else []
    axes = [_HEADS, "b T k H", "b T k H", *["b T R"] * len(angles), _KEYS, _VALUES, _STARTS]
    call = _RotateAndStore(interleaved, rotates=bool(angles))
    return tuple(partition.call(call, [*new, *angles, *cache], axes, [_HEADS, _KEYS, _VALUES]))


@dataclasses.dataclass(frozen=True)
class _RotateAndStore:
    """`rocmforge_rotate_and_store` as a function of its arrays, with angles only if it rotates."""

    interleaved: bool
    rotates: bool

    def __call__(self, *arrays) -> list[jax.Array]:
        (q_BTNH, k_BTKH, v_BTKH), angles, cache = arrays[:3], arrays[3:-3], arrays[-3:]
        if not self.rotates:
            angles = [jnp.zeros((*q_BTNH.shape[:2], 0), jnp.float32)] * 2
        keys, values, _ = cache
        outputs = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (q_BTNH, keys, values)]
        aliases = {5: 1, 6: 2}
        call = jax.ffi.ffi_call("rocmforge_rotate_and_store", outputs, input_output_aliases=aliases)
        interleaved = np.bool_(self.interleaved)
        return list(call(q_BTNH, k_BTKH, v_BTKH, *angles, *cache, interleaved=interleaved))


def check(q_BTNH, keys, values, starts_B) -> None:
    """Raises ValueError, with the shapes, for operands that do not fit together."""
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
