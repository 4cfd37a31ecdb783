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
    "both sides 7": {"causal": False, "window": 7},
    "both sides 101": {"causal": False, "window": 101},
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


def seen(rule, starts, T, S, filled=None) -> np.ndarray:
    """Which slots each token sees: bool [B, T, S]."""
    own, slot = starts[:, None, None] + np.arange(T)[:, None], np.arange(S)
    if not rule.causal:
        end = (starts + T if filled is None else filled)[:, None, None]
        return (slot < end) & (abs(slot - own) <= (rule.window or 2 * S) // 2)
    return (slot <= own) & (slot > own - (rule.window or S))


def exact(q, keys, values, starts, rule, filled=None) -> np.ndarray:
    """Attention in float64."""
    (_, T, N, _), (_, K, _, S) = q.shape, keys.shape
    group = N // K
    shown = seen(rule, starts, T, S, filled)[:, :, None]
    scores = np.einsum(
        "btnh,bnhs->btns", np.float64(q), np.float64(keys).repeat(group, axis=1), optimize=True
    )
    scores = scores * rule.scale
    if rule.soft_cap is not None:
        scores = rule.soft_cap * np.tanh(scores / rule.soft_cap)
    scores = np.where(shown, scores, -np.inf)
    sinks = np.full(N, -np.inf) if rule.sinks_N is None else np.float64(rule.sinks_N)
    most = np.maximum(np.maximum(scores.max(axis=-1), sinks), -1e300)[..., None]
    weights = np.exp(scores - most)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks[:, None] - most)
    total = np.where(total > 0, total, 1)  # of a token that sees nothing
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


@pytest.mark.parametrize("index", [4, 6, 8])
@pytest.mark.parametrize("name", [name for name in RULES if "both" in name or "not causal" in name])
def test_unfilled_slots(name, index, instructions, distance):
    """They hold NaN, also between those that some token of the batch sees."""
    (q, keys, values, starts), rule = made(CASES[index]), rule_of(name, CASES[index])
    T, S = q.shape[1], keys.shape[3]
    filled = np.array([S - T // 2, 9, 0][: len(starts)], np.int32)
    starts = np.zeros_like(starts)
    unfilled = np.arange(S) >= filled[:, None]
    keys = np.where(unfilled[:, None, None], np.float32(np.nan), keys)
    values = np.where(unfilled[:, None, :, None], np.float32(np.nan), values)
    out = attention.attend(q, keys, values, starts, rule, filled_B=jax.numpy.asarray(filled))
    truth = exact(q, np.nan_to_num(keys), np.nan_to_num(values), starts, rule, filled)
    assert distance(out, truth) < 1e-6


#: B, T, N, K, H, S, starts of rings: before and after they wrap, at their end, several times
#: around, and sizes that fill no tile.
RINGS = [
    (1, 1, 14, 2, 64, 256, [190]),
    (3, 1, 4, 1, 80, 64, [63, 64, 1000]),
    (4, 1, 6, 3, 40, 110, [0, 109, 330, 437]),
    (2, 1, 4, 2, 128, 576, [575, 2100]),
    (2, 6, 4, 2, 32, 110, [107, 400]),
]


def ring_of(keys, values, starts, T, S):
    """Returns a ring of S slots that holds the tokens before starts + T; others hold NaN."""
    in_ring = np.full((*keys.shape[:3], S), np.nan, np.float32)
    values_in_ring = np.full((*values.shape[:2], S, values.shape[3]), np.nan, np.float32)
    for b, start in enumerate(starts):
        for p in range(start + T):
            in_ring[b, ..., p % S], values_in_ring[b, :, p % S] = keys[b, ..., p], values[b, :, p]
    return in_ring, values_in_ring


@pytest.mark.parametrize("case", RINGS, ids=str)
@pytest.mark.parametrize("name", ["window 1", "window 7", "window, soft cap and sinks", "whole"])
def test_rings(case, name, instructions, distance):
    """As much of the ring as a window can show, or less. What no token sees is not read."""
    *shape, S, starts = case
    q, keys, values, starts = operands(*shape, max(starts) + shape[1], tuple(starts))
    T, N, H = q.shape[1:]
    rule = AttentionRule(H**-0.5, window=S - T + 1) if name == "whole" else rule_of(name, case)
    ring_keys, ring_values = ring_of(keys, values, starts, T, S)
    for b, start in enumerate(starts):
        seen_slots = [p % S for p in range(max(0, start - rule.window + 1), start + T)]
        unseen = np.setdiff1d(np.arange(S), seen_slots)
        ring_keys[b, ..., unseen] = ring_values[b, :, unseen] = np.nan
    out = attention.attend(q, ring_keys, ring_values, starts, rule, ring=True)
    assert distance(out, exact(q, keys, values, starts, rule)) < 1e-6


def test_rings_that_do_not_hold_the_window_are_refused(library):
    q, keys, values, starts = made(CASES[1])
    with pytest.raises(ValueError, match="5 new tokens with a window of 97 see 101 .* 100"):
        attention.attend(q, keys, values, starts, AttentionRule(1.0, window=97), ring=True)
    with pytest.raises(ValueError, match="a ring of 100 slots .* window=None"):
        attention.attend(q, keys, values, starts, AttentionRule(1.0), ring=True)


def test_tokens_before_a_ring_fail(library):
    """Those after its end are in it."""
    q, keys, values, _ = made(CASES[1])
    rule = AttentionRule(1.0, window=9)
    attention.attend(q, keys, values, np.int32([96, 10**6]), rule, ring=True).block_until_ready()
    with pytest.raises(Exception, match="tokens beyond the cache"):
        starts = np.int32([0, -1])
        attention.attend(q, keys, values, starts, rule, ring=True).block_until_ready()


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
    for starts, numbers in (
        ([96, 0], "5 tokens after 96 in row 0 do not fit 100 slots.* 101"),
        ([0, -1], "5 tokens after -1 in row 1"),
    ):
        with pytest.raises(Exception, match=numbers):
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


def test_chunks_are_refused():
    with pytest.raises(NotImplementedError, match="chunk=9"):
        attention.attend(*made(CASES[1]), AttentionRule(1.0, chunk=9))


def test_wrong_filled_slots_are_refused(instructions):
    q, keys, values, starts = made(CASES[1])
    filled = jax.numpy.full(2, 101, jax.numpy.int32)
    with pytest.raises(Exception, match="filled slots beyond the cache"):
        attention.attend(q, keys, values, starts, AttentionRule(1.0, False), filled_B=filled)
    for rule, wrong in ((AttentionRule(1.0), filled), (AttentionRule(1.0, False), filled[:1])):
        with pytest.raises(ValueError, match=rf"filled_B.* \[{len(wrong)}\] .*{rule.causal}"):
            attention.attend(q, keys, values, starts, rule, filled_B=wrong)


def test_sinks_of_other_heads_are_refused():
    """Numbers that no rule can have are refused when one is made."""
    with pytest.raises(ValueError, match=r"sinks_N has shape \[5\]: expected \[6\]"):
        attention.attend(*made(CASES[1]), AttentionRule(1.0, sinks_N=np.zeros(5, np.float32)))
