"""Grouped-query attention over a KV cache, on every backend.

One implementation covers MHA, GQA and MQA, which differ only in the number of query heads per KV
head. The XLA implementation is `pallas_kernels.attention.reference`. The Pallas and C++ kernels
compute the same.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention import AttentionRule, reference
from pallas_kernels.attention.checks import check_operands
from rocmforge_jax.backends import DEFAULT, Numerics, choose
from rocmforge_jax.backends.on_mesh import current_mesh
from rocmforge_jax.nn import attention_calls
from rocmforge_jax.nn.attention_backends import ATTENTION, MASKED, NEW_TOKENS
from rocmforge_jax.nn.attention_calls import NewTokensSpec, rotated
from rocmforge_jax.nn.attention_on_mesh import on_each_device
from rocmforge_jax.nn.dims import validate_attention_dims
from rocmforge_jax.nn.kv_state import KVState
from rocmforge_jax.nn.norm import is_fusable
from rocmforge_jax.nn.quantized_input import QuantizedInput
from rocmforge_jax.nn.rope import RopeConfig
from rocmforge_jax.nn.visible import Visible


def causal_mask(positions_BT, length: int):
    """Returns a causal mask over `length` slots, bool [B, T, S]: true up to a query's position."""
    return jnp.arange(length)[None, None] <= positions_BT[..., None]


def attend(q_BTNH, cache: KVState, mask_BTS, rule: AttentionRule | None = None):
    """Computes attention under any mask, in plain XLA.

    Args:
        q_BTNH: Queries. Query head n reads KV head n // (N / K).
        cache: Keys and values, which are never cast as a whole.
        mask_BTS: bool, true where a query sees a slot. A query that sees no slot returns zeros.
        rule: Scale, soft cap and sinks. The rule's own mask is ignored. Default: scale 1/sqrt(H).

    Returns:
        softmax(rule(q k^T)) v, [B, T, N, H] in q's dtype. Scores and softmax are float32.
    """
    rule = AttentionRule(q_BTNH.shape[-1] ** -0.5) if rule is None else rule
    return reference.attend(q_BTNH, cache.keys, cache.values, mask_BTS, rule)


def cached_attention(
    q_BTNH,
    cache: KVState,
    starts_B,
    rule: AttentionRule,
    *,
    filled_B=None,
    visible: Visible | None = None,
    backend: str | None = None,
):
    """Computes attention of T new tokens whose keys and values are already in the cache.

    Args:
        q_BTNH: Queries of the new tokens. T must be 1 if the cache is a ring buffer that wraps.
        cache: Keys and values of all tokens, including the new ones.
        starts_B: int32, the position of each sequence's first new token.
        rule: Which slots a query sees, and how scores become weights.
        filled_B: Integers: the number of slots of each sequence that hold tokens, for a rule with
            causal=False. Default: all slots up to the last new token.
        visible: A mask that replaces the causal rule; XLA then computes the attention.
        backend: "pallas", "cpp" or "xla". Default: the first backend that supports the case.

    Returns:
        [B, T, N, H] in q's dtype. Differentiable.

    Raises:
        ValueError: Shapes, dtypes or windows do not fit together.
    """
    if (mesh := current_mesh()) is not None:

        def of_device(heads, cache, by_batch, _, rule):
            starts_B, filled_B, visible = by_batch
            options: Any = dict(filled_B=filled_B, visible=visible, backend=backend)
            (q_BTNH,) = heads
            return cached_attention(q_BTNH, cache, starts_B, rule, **options), cache

        by_batch = jnp.asarray(starts_B), filled_B, visible
        operands: Any = cache.keys.shape[1], rule, (q_BTNH,), cache, by_batch, None
        return on_each_device(of_device, mesh, *operands)[0]
    _check_window(cache, rule)
    if cache.wraps and q_BTNH.shape[1] > 1:
        raise ValueError(
            f"one token at a time attends to a ring buffer of {cache.length} slots, got"
            f" {q_BTNH.shape[1]}: use attend_to_new"
        )
    if visible is not None:
        choose(MASKED, (), backend)
        seen_BTS, distances_BTS = visible.under(rule), visible.distances(rule)
        return reference.attend(q_BTNH, cache.keys, cache.values, seen_BTS, rule, distances_BTS)
    starts_B = jnp.asarray(starts_B)
    arrays = dict(q_BTNH=q_BTNH, keys_BKHS=cache.keys, values_BKSH=cache.values, starts_B=starts_B)
    filled_B = None if filled_B is None else jnp.asarray(filled_B)
    check_operands(arrays, rule, filled_B)
    operands = _shaped(q_BTNH), _shaped(cache), rule
    choice = choose(ATTENTION, operands, backend)
    starts_B = starts_B.astype(jnp.int32)
    filled_B = None if filled_B is None else filled_B.astype(jnp.int32)
    return attention_calls.attend(choice.name, q_BTNH, cache, starts_B, rule, filled_B)


def attend_to_new(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    table,
    rope: RopeConfig | None,
    cache: KVState | None,
    starts_B,
    rule: AttentionRule,
    *,
    lengths_B=None,
    norms: tuple | None = None,
    visible: Visible | None = None,
    numerics: Numerics = DEFAULT,
) -> tuple[QuantizedInput, KVState | None]:
    """Normalises and rotates T new tokens, writes them into the cache and computes attention.

    Args:
        q_BTNH: Queries, before norm and rotation.
        k_BTKH: Keys, before norm and rotation.
        v_BTKH: Values.
        table: `rope_table` of the tokens' positions, or None if nothing rotates.
        rope: Which elements of a head rotate, or None.
        cache: The earlier tokens. None: the new tokens attend only to one another.
        starts_B: int32, the position of each sequence's first new token; unused without a cache.
        rule: Which slots a query sees, and how scores become weights. If the cache has a window,
            the rule must have the same one.
        lengths_B: int32, 0 to T: the number of real tokens of each sequence, before its padding.
            Give it for padded sequences with a ring buffer, which must not store padding, or with
            causal=False, where tokens would attend to padding. Default: all T are real.
        norms: The norm of the query heads and the norm of the key heads, or None.
        visible: A mask that replaces the causal rule. The cache must not be a ring buffer.
        numerics: The backend, and the activation mode of the next product. A kernel may quantise
            its result in this mode.

    Returns:
        Attention [B, T, N * H], and the cache with the new tokens. Differentiable.

    Raises:
        ValueError: Operands do not fit together.
    """
    if (table is None) != (rope is None):
        given = "a table without rope" if rope is None else "rope without a table"
        raise ValueError(f"attend_to_new got {given}: give both, or None for both")
    if lengths_B is not None and lengths_B.shape != q_BTNH.shape[:1]:
        raise ValueError(
            f"lengths_B has shape {list(lengths_B.shape)} for {q_BTNH.shape[0]} sequences"
        )
    if rope is not None and rope.width > q_BTNH.shape[-1]:
        raise ValueError(
            f"rope rotates {rope.width} elements of a head, the head has {q_BTNH.shape[-1]}"
        )
    if (mesh := current_mesh()) is not None:

        def of_device(heads, cache, by_batch, norms, rule):
            table, starts_B, lengths_B, visible = by_batch
            options: Any = dict(lengths_B=lengths_B, visible=visible, norms=norms)
            operands: Any = *heads, table, rope, cache, starts_B, rule
            out, cache = attend_to_new(*operands, numerics=numerics, **options)
            return out.array, cache

        by_batch = table, starts_B, lengths_B, visible
        operands: Any = k_BTKH.shape[2], rule, (q_BTNH, k_BTKH, v_BTKH), cache, by_batch, norms
        out, cache = on_each_device(of_device, mesh, *operands)
        return QuantizedInput(out), cache
    unfused = cache is None or visible is not None
    if norms is not None and (unfused or not all(map(is_fusable, norms))):
        q_BTNH, k_BTKH, norms = norms[0](q_BTNH), norms[1](k_BTKH), None
    if cache is None:
        q_BTNH, k_BTKH = (rotated(heads, table, rope) for heads in (q_BTNH, k_BTKH))
        from_the_first_B = jnp.zeros(q_BTNH.shape[:1], jnp.int32)
        of_these = KVState.of(k_BTKH, v_BTKH)
        filled_B = None if rule.causal else lengths_B
        options: Any = dict(filled_B=filled_B, visible=visible, backend=numerics.backend)
        out = cached_attention(q_BTNH, of_these, from_the_first_B, rule, **options)
        return QuantizedInput(_joined(out)), None
    if not rule.causal and lengths_B is not None:
        raise ValueError(
            "attend_to_new got lengths_B and a cache for a rule with causal=False: tokens with"
            " padding see one another without a cache"
        )
    _check_window(cache, rule)
    if visible is not None:
        if cache.wraps:
            raise ValueError(
                f"a mask needs the slots of all tokens, but a layer with a window of {cache.window}"
                f" keeps a ring buffer of {cache.length}: compute the text without a cache"
            )
        operands = q_BTNH, k_BTKH, v_BTKH, table, rope, cache, starts_B
        q_BTNH, stored = attention_calls.store(*operands)
        options = dict(visible=visible, backend=numerics.backend)
        out = cached_attention(q_BTNH, stored, starts_B, rule, **options)
        return QuantizedInput(_joined(out)), stored
    spec = NewTokensSpec(rope, numerics, norms and tuple(norm.epsilon for norm in norms))
    scales = norms and tuple(norm.scale.get_value() for norm in norms)
    choice = choose(NEW_TOKENS, (_shaped(q_BTNH), _shaped(cache), rule, spec), numerics.backend)
    operands = q_BTNH, k_BTKH, v_BTKH, table, cache, starts_B, lengths_B, scales, rule
    (out, quantized), cache = attention_calls.attend_to_new(choice.name, spec, *operands)
    return QuantizedInput(_joined(out), quantized), cache


def _check_window(cache: KVState, rule: AttentionRule) -> None:
    if cache.window is not None and cache.window != rule.window:
        raise ValueError(
            f"the KV cache has a window of {cache.window}, the rule of attention {rule.window}:"
            " they must be equal"
        )


def _shaped(tree):
    """Returns the shapes and dtypes of a pytree; a choice of backend depends on nothing else."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def _joined(heads_BTNH):
    return heads_BTNH.reshape(*heads_BTNH.shape[:2], -1)


def dot_product_attention(q, k, v, mask=None, *, scale: float | None = None):
    """Computes attention of queries over keys and values, without a cache.

    Args:
        q: Queries [B, T, N, H]; N is a multiple of K.
        k: Keys [B, S, K, H].
        v: Values [B, S, K, H].
        mask: bool [B, T, S], true where a query sees a key. Default: every query sees every key.
        scale: Factor of the scores, default 1/sqrt(H).

    Returns:
        [B, T, N, H] in q's dtype.

    Raises:
        ValueError: Shapes do not fit, see `validate_attention_dims`.
    """
    validate_attention_dims(q, k, v, mask)
    if mask is None:
        mask = jnp.ones((q.shape[0], q.shape[1], k.shape[1]), bool)
    rule = AttentionRule(q.shape[-1] ** -0.5 if scale is None else scale)
    return attend(q, KVState.of(k, v), mask, rule)
