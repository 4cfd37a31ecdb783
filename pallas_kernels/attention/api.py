"""Attention over a KV cache: checks the operands, then runs the kernels.

Axes: B batch, T new tokens, N query heads, K KV heads, H head width, S slots. Query head n reads
KV head n // (N / K). `reference` computes the cases that the kernels reject with
NotImplementedError.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import checks, decode, prefill
from pallas_kernels.attention.blocks import DECODE, PREFILL, Blocks
from pallas_kernels.attention.decode import NewTokens
from pallas_kernels.attention.rule import AttentionRule
from pallas_kernels.packing import GROUP
from pallas_kernels.targets import Target


def decode_attention(
    q_BNH,
    keys_BKHS,
    values_BKSH,
    lengths_B,
    rule: AttentionRule,
    *,
    target: Target | None,
    blocks: Blocks | None = None,
    activations: str | None = None,
    new: NewTokens | None = None,
    ring: bool = False,
) -> Any:
    """Compute attention of one query of each sequence, at position lengths_B[b] - 1.

    Products take operands in the cache's dtype. Sums and softmax are in float32. The contents of
    unfilled slots have no effect.

    Args:
        q_BNH: queries.
        keys_BKHS: the keys of the cache.
        values_BKSH: the values of the cache, in the same dtype.
        lengths_B: integers 0 to S, the number of filled slots, including the query's own. A
            sequence of length 0 gets zeros. With `ring`, lengths may exceed S.
        rule: which slots a query sees, and their weights.
        target: the compilation target.
        blocks: tile sizes; the default depends on the target.
        activations: a mode of `qmatmul.activations`, or None.
        new: the tokens of the queries, if the cache does not hold them yet. The kernel then applies
            norms and rotation to these tokens and to the queries.
        ring: whether the slots are a ring buffer: the token at position p is in slot p % S. The
            rule then needs a window of at most S slots.

    Returns:
        The attention [B, N, H] in q's dtype. With `activations`, a pair: the attention, and the
        Activations of its rows [B, N * H]. With `new`, a triple: the above, and the keys and values
        of the cache with the new tokens. These reuse the memory of donated operands.

    Raises:
        NotImplementedError: the kernels do not support the operands.
        ValueError: the operands do not fit together.
    """
    arrays = dict(q_BNH=q_BNH, keys_BKHS=keys_BKHS, values_BKSH=values_BKSH, lengths_B=lengths_B)
    checks.check_operands(arrays, rule)
    checks.require_kernels(target, q_BNH, keys_BKHS, values_BKSH, rule)
    if new is not None:
        new = checks.checked_new_tokens(new, keys_BKHS.shape)
    checks.require_one_sided(rule)
    _, _, slots, H = values_BKSH.shape
    blocks = blocks or DECODE.of(target, keys_BKHS.dtype.itemsize, H, slots)
    if ring:
        checks.check_ring(slots, 1, rule)
        checks.require_whole_blocks(slots, blocks.slots)
    splits = decode.split_count(
        values_BKSH.shape, q_BNH.shape[1] // keys_BKHS.shape[1], rule.window, blocks
    )
    checks.require_fits("the partial sums", (*q_BNH.shape, splits))
    if activations is not None and q_BNH.shape[-1] % GROUP:
        raise NotImplementedError(
            f"heads of {q_BNH.shape[-1]}, only multiples of {GROUP} can be quantised"
        )
    operands = q_BNH, keys_BKHS, values_BKSH, lengths_B.astype(jnp.int32), _in_float32(rule)
    return decode.decode(*operands, blocks, target, activations, new, ring)


def prefill_attention(
    q_BTNH,
    keys_BKHS,
    values_BKSH,
    starts_B,
    rule: AttentionRule,
    *,
    target: Target | None,
    blocks: Blocks | None = None,
    filled_B=None,
) -> jax.Array:
    """Compute attention of T new tokens, whose keys and values are already in the cache.

    Args:
        q_BTNH: queries.
        keys_BKHS: the keys of the cache.
        values_BKSH: the values of the cache, in the same dtype.
        starts_B: integers, the slot of each sequence's first new token. Token t is at position
            starts_B[b] + t. It sees the slots up to its own, or all filled slots with
            `causal=False`. A token that sees no slot gets zeros.
        rule: which slots a query sees, and their weights.
        target: the compilation target.
        blocks: tile sizes; the default depends on the target.
        filled_B: integers 0 to S, the number of filled slots of each sequence, for a rule with
            `causal=False`. Default: starts_B + T.

    Returns:
        The attention [B, T, N, H] in q's dtype.

    Raises:
        NotImplementedError: the kernel does not support the operands.
        ValueError: the operands do not fit together.
    """
    arrays = dict(q_BTNH=q_BTNH, keys_BKHS=keys_BKHS, values_BKSH=values_BKSH, starts_B=starts_B)
    checks.check_operands(arrays, rule, filled_B)
    checks.require_kernels(target, q_BTNH, keys_BKHS, values_BKSH, rule)
    (_, T, N, _), (_, K, H, slots) = q_BTNH.shape, keys_BKHS.shape
    blocks = blocks or PREFILL.of(target, keys_BKHS.dtype.itemsize, H, slots, T * N // K)
    filled_B = None if filled_B is None else filled_B.astype(jnp.int32)
    starts_B, rule = starts_B.astype(jnp.int32), _in_float32(rule)
    operands = q_BTNH, keys_BKHS, values_BKSH, starts_B, rule, filled_B
    return prefill.prefill(*operands, blocks, target)


def _in_float32(rule):
    if rule.sinks_N is None:
        return rule
    return dataclasses.replace(rule, sinks_N=rule.sinks_N.astype(jnp.float32))
