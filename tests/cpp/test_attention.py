"""Attention over a KV cache in C++, with every set of instructions, against float64."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule
from rocmforge_jax.cpp import attention
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP


#: B, T, N, K, H, S, starts: one token and several, 1, 2, 3 and 7 heads of q for a KV head, one KV
#: head, widths and slots that fill no tile, several tiles of queries and of slots.
CASES = [
    (1, 1, 14, 2, 64, 256, [190]),
    (2, 5, 6, 2, 40, 100, [70, 3]),
    (1, 70, 8, 8, 128, 77, [7]),
    (3, 1, 4, 1, 80, 50, [0, 49, 20]),
    (1, 150, 7, 1, 24, 700, [411]),
    (2, 5, 4, 2, 32, 600, [590, 40]),
    (3, 70, 4, 2, 80, 200, [0, 130, 61]),
    (1, 70, 2, 1, 256, 330, [250]),
    (3, 1, 14, 2, 512, 300, [299, 3, 257]),
    (2, 5, 2, 2, 512, 90, [77, 0]),
    (1, 70, 2, 1, 512, 200, [120]),
]
#: What a rule has besides its scale; "sinks" stands for one logit a head.
RULES = {
    "plain": {},
    "window 1": {"window": 1},
    "window 7": {"window": 7},
    "window 101": {"window": 101},
    "window beyond the cache": {"window": 10**9},
    "soft cap": {"soft_cap": 1.5},
    "sinks": {"sinks_N": "sinks"},
    "soft cap and sinks": {"soft_cap": 3.0, "sinks_N": "sinks"},
    "window, soft cap and sinks": {"window": 33, "soft_cap": 3.0, "sinks_N": "sinks"},
    "not causal": {"causal": False},
    "not causal, soft cap and sinks": {"causal": False, "soft_cap": 3.0, "sinks_N": "sinks"},
}


@functools.cache
def operands(B, T, N, K, H, S, starts):
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, K, H, S), (B, K, S, H)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for array in arrays:
        array.setflags(write=False)
    return *arrays, np.array(starts, np.int32)


def made(case):
    return operands(*case[:-1], tuple(case[-1]))


def rule_of(name, case) -> AttentionRule:
    N, H = case[2], case[4]
    parts = dict(RULES[name])
    if "sinks_N" in parts:
        parts["sinks_N"] = np.linspace(-3, 5, N, dtype=np.float32)
    return AttentionRule(H**-0.5, **parts)


def seen(rule, starts, T, S) -> np.ndarray:
    """Which slots each token sees: bool [B, T, S]."""
    own, slot = starts[:, None, None] + np.arange(T)[:, None], np.arange(S)
    if not rule.causal:
        return np.broadcast_to(slot < starts[:, None, None] + T, (len(starts), T, S))
    return (slot <= own) & (slot > own - (rule.window or S))


def exact(q, keys, values, starts, rule) -> np.ndarray:
    """Attention in float64."""
    (_, T, N, _), (_, K, _, S) = q.shape, keys.shape
    group = N // K
    shown = seen(rule, starts, T, S)[:, :, None]
    scores = np.einsum(
        "btnh,bnhs->btns", np.float64(q), np.float64(keys).repeat(group, axis=1), optimize=True
    )
    scores = scores * rule.scale
    if rule.soft_cap is not None:
        scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
    scores = np.where(shown, scores, -np.inf)
    sinks = np.full(N, -np.inf) if rule.sinks_N is None else np.float64(rule.sinks_N)
    most = np.maximum(scores.max(axis=-1), sinks)[..., None]
    weights = np.exp(scores - most)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks[:, None] - most)
    return np.einsum(
        "btns,bnsh->btnh",
        weights / total,
        np.float64(values).repeat(group, axis=1),
        optimize=True,
    )


@functools.cache
def truth(name, index) -> np.ndarray:
    return exact(*made(CASES[index]), rule_of(name, CASES[index]))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
@pytest.mark.parametrize("name", RULES)
def test_attention(name, index, instructions, distance):
    """Slots that no token sees are not read: they hold NaN."""
    (q, keys, values, starts), rule = made(CASES[index]), rule_of(name, CASES[index])
    unseen = ~seen(rule, starts, q.shape[1], keys.shape[3]).any(axis=1)
    keys = np.where(unseen[:, None, None], np.float32(np.nan), keys)
    values = np.where(unseen[:, None, :, None], np.float32(np.nan), values)
    out = attention.attend(q, keys, values, starts, rule)
    assert distance(out, truth(name, index)) < 1e-6


def test_tiles_before_the_window_are_skipped(instructions):
    """A value that is not a number reaches the tokens that see it, and those of their tile only."""
    q, keys, values, starts = made(CASES[4])
    values = values.copy()
    values[0, 0, starts[0]] = np.nan
    out = attention.attend(q, keys, values, starts, AttentionRule(1.0, window=4))
    poisoned = np.isnan(out).any(axis=(0, 2, 3))
    assert poisoned[:4].all() and not poisoned[12:].any()


def test_large_scores(instructions, distance):
    """A softmax overflows here without care, and a cap is reached at either end."""
    q, keys, values, starts = made(CASES[1])
    q = q * 300
    out = attention.attend(q, keys, values, starts, AttentionRule(1.0))
    assert np.isfinite(out).all() and np.abs(out).max() <= np.abs(values).max() * (1 + 1e-6)
    capped = AttentionRule(1.0, soft_cap=20.0)
    out = attention.attend(q, keys, values, starts, capped)
    assert distance(out, exact(q, keys, values, starts, capped)) < 1e-5


@pytest.mark.parametrize("name", ["plain", "window, soft cap and sinks", "not causal"])
def test_a_query_that_is_no_number_poisons_no_other(name, instructions):
    q, keys, values, starts = made(CASES[1])
    q = q.copy()
    q[1, 2, 3, 4] = np.nan
    out = attention.attend(q, keys, values, starts, rule_of(name, CASES[1]))
    poisoned = np.isnan(out).any(axis=-1)
    assert np.argwhere(poisoned).tolist() == [[1, 2, 3]]


def test_sinks_at_both_ends(instructions):
    """A sink of -inf takes no share; one far above all scores takes nearly everything."""
    *arrays, starts = made(CASES[1])
    sinks = np.array([-np.inf, 0, -np.inf, 60, 0, 1e4], np.float32)
    out = attention.attend(*arrays, starts, AttentionRule(0.1, sinks_N=sinks))
    plain = attention.attend(*arrays, starts, AttentionRule(0.1))
    np.testing.assert_array_equal(out[:, :, [0, 2]], plain[:, :, [0, 2]])
    assert np.isfinite(out).all() and (np.abs(out[:, :, [3, 5]]) < 1e-20).all()


def test_jit_and_vmap(library):
    q, keys, values, starts = made(CASES[1])
    rule = rule_of("window, soft cap and sinks", CASES[1])
    whole = attention.attend(q, keys, values, starts, rule)

    @jax.jit
    def one_by_one(sinks, *operands):
        with_sinks = dataclasses.replace(rule, sinks_N=sinks)
        return jax.vmap(lambda *one: attention.attend(*(a[None] for a in one), with_sinks)[0])(
            *operands
        )

    np.testing.assert_array_equal(one_by_one(rule.sinks_N, q, keys, values, starts), whole)


def test_tokens_beyond_the_cache_fail(library):
    q, keys, values, _ = made(CASES[1])
    for starts in ([96, 0], [0, -1]):
        with pytest.raises(Exception, match="tokens beyond the cache"):
            jax.block_until_ready(
                attention.attend(q, keys, values, np.array(starts, np.int32), AttentionRule(1.0))
            )


WRONG = {
    r"float32 \[2, 5, 5, 40\]": lambda q, *rest: (q[:, :, :5], *rest),
    r"float16 \[2, 5, 6, 40\]": lambda q, *rest: (q.astype(np.float16), *rest),
    r"float32 \[2, 2, 99, 40\]": lambda q, k, v, starts: (q, k, v[:, :, :-1], starts),
    r"float32 \[2, 0, 40, 100\]": lambda q, k, v, starts: (q, k[:, :0], v[:, :0], starts),
    r"float32 \[2, 2, 40, 4\]": lambda q, k, v, starts: (q, k[..., :4], v[:, :, :4], starts),
    r"int32 \[1\]": lambda q, k, v, starts: (q, k, v, starts[:1]),
    r"int16 \[2\]": lambda q, k, v, starts: (q, k, v, starts.astype(np.int16)),
}


@pytest.mark.parametrize("shape", WRONG)
def test_shapes_that_do_not_fit_are_refused_with_all_of_them(shape):
    with pytest.raises(ValueError, match=f"float32 q.*int32 starts.* got .*{shape}"):
        attention.attend(*WRONG[shape](*made(CASES[1])), AttentionRule(1.0))


def test_sinks_of_other_heads_are_refused():
    """Numbers that no rule can have are refused when one is made."""
    with pytest.raises(ValueError, match=r"sinks_N has shape \[5\]: expected \[6\]"):
        attention.attend(*made(CASES[1]), AttentionRule(1.0, sinks_N=np.zeros(5, np.float32)))
