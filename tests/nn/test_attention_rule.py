"""One attention rule on every backend: windows, soft caps, sinks and no causal mask, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.backends import BackendError, Numerics, record
from rocmforge_jax.nn import (
    AttentionRule,
    KVState,
    RopeConfig,
    apply_rope,
    attend_to_new,
    cached_attention,
    rope_table,
)

#: Slots of the cache, and where each sequence's new tokens begin.
S, STARTS = 90, [61, 0, 7]
RULES = {
    "plain": {},
    "window of 1": dict(window=1),
    "window of 17": dict(window=17),
    "window of all": dict(window=200),
    "soft cap": dict(soft_cap=1.5),
    "sinks": dict(sinks=True),
    "all at once": dict(window=17, soft_cap=1.5, sinks=True, scale=0.3),
    "not causal": dict(causal=False),
    "not causal, with sinks": dict(causal=False, sinks=True, soft_cap=3.0),
    "window to both sides": dict(causal=False, window=17),
    "window to both sides, with sinks": dict(causal=False, window=3, sinks=True, soft_cap=3.0),
}


def made(rule, heads, width, normal):
    """Returns an AttentionRule, and the arguments of the reference that are not the mask."""
    rule = dict(scale=width**-0.5) | rule
    sinks = normal(heads, seed=7) if rule.pop("sinks", False) else None
    numbers = dict(scale=rule["scale"], soft_cap=rule.get("soft_cap"), sinks=sinks)
    return AttentionRule(**rule, sinks_N=None if sinks is None else jnp.asarray(sinks)), numbers


def mask_of(rule, T):
    """Returns which slots each query sees, bool [B, T, S]."""
    starts, slots = np.array(STARTS)[:, None, None], np.arange(S)[None, None]
    positions = starts + np.arange(T)[None, :, None]
    if not rule.causal:
        seen = slots < starts + T + 0 * positions
        return seen if rule.window is None else seen & (abs(slots - positions) <= rule.window // 2)
    seen = slots <= positions
    return seen if rule.window is None else seen & (slots > positions - rule.window)


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("name", RULES)
def test_every_backend_takes_the_whole_rule(name, T, backend, normal, attention, distance):
    """What unfilled slots hold is never seen."""
    B, N, K, H = len(STARTS), 6, 2, 32
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
    rule, numbers = made(RULES[name], N, H, normal)
    filled = np.arange(S)[None, :, None, None] < np.array(STARTS)[:, None, None, None] + T
    cache = KVState.of(*(jnp.asarray(np.where(filled, a, np.float32(1e4))) for a in (k, v)))
    run = functools.partial(cached_attention, backend=backend)
    out = jax.jit(run)(jnp.asarray(q), cache, jnp.array(STARTS, jnp.int32), rule)
    assert distance(out, attention(q, k, v, mask_of(rule, T), **numbers)) < 1e-5


@pytest.mark.parametrize(("N", "K", "H"), [(2, 1, 512), (4, 4, 80), (7, 1, 256)])
@pytest.mark.parametrize("T", [1, 4])
def test_widths_and_ratios(N, K, H, T, backend, normal, attention, distance):
    B = len(STARTS)
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
    rule, numbers = made(RULES["all at once"], N, H, normal)
    cache, starts = KVState.of(jnp.asarray(k), jnp.asarray(v)), jnp.array(STARTS, jnp.int32)
    with record() as decisions:
        out = cached_attention(jnp.asarray(q), cache, starts, rule, backend=backend)
    assert [decision.choice.name for decision in decisions] == [backend]
    assert distance(out, attention(q, k, v, mask_of(rule, T), **numbers)) < 1e-5


@pytest.mark.parametrize("name", ["plain", "all at once", "not causal"])
@pytest.mark.parametrize("T", [1, 3])
def test_new_tokens_enter_the_cache_and_attend(name, T, backend, normal, attention, distance):
    """The cache is the same on every backend, and so is what attends to it."""
    B, N, K, H = len(STARTS), 4, 2, 32
    q, k, v = (normal(B, T, heads, H, seed=i) for i, heads in enumerate((N, K, K)))
    rule, numbers = made(RULES[name], N, H, normal)
    past = [normal(B, S, K, H, seed=i) for i in (3, 4)]
    rope, starts = RopeConfig(24), jnp.array(STARTS, jnp.int32)
    table = rope_table(starts[:, None] + jnp.arange(T, dtype=jnp.int32)[None], rope)
    cache = KVState.of(*map(jnp.asarray, past))
    out, after = attend_to_new(
        *map(jnp.asarray, (q, k, v)),
        table,
        rope,
        cache,
        starts,
        rule,
        numerics=Numerics(backend=backend),
    )
    turned_q, turned_k = (np.asarray(apply_rope(jnp.asarray(a), table, rope)) for a in (q, k))
    keys, values = (a.copy() for a in past)
    for b, start in enumerate(STARTS):
        keys[b, start : start + T], values[b, start : start + T] = turned_k[b], v[b]
    np.testing.assert_allclose(np.asarray(after.keys).transpose(0, 3, 1, 2), keys, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(after.values).transpose(0, 2, 1, 3), values)
    truth = attention(turned_q, keys, values, mask_of(rule, T), **numbers)
    assert distance(out.array, truth.reshape(B, T, -1)) < 1e-5


@pytest.mark.parametrize("name", [name for name in RULES if "not causal" in name or "both" in name])
@pytest.mark.parametrize("T", [1, 40])
def test_no_text_sees_the_padding_of_a_batch(name, T, backend, normal, attention, distance):
    """Without a cache. One text is empty; the others have the numbers that they have alone."""
    lengths, N, K, H = [T, 0, (T + 1) // 2], 4, 2, 32
    B = len(lengths)
    q, k, v = (normal(B, T, heads, H, seed=i) for i, heads in enumerate((N, K, K)))
    rule, numbers = made(RULES[name], N, H, normal)
    position, slot = np.arange(T)[:, None], np.arange(T)
    seen = abs(slot - position) <= (rule.window or 2 * T) // 2
    mask = seen[None] & (slot < np.array(lengths)[:, None, None])
    padding = np.arange(T)[None, :, None, None] >= np.array(lengths)[:, None, None, None]
    dirty_k, dirty_v = (np.where(padding, np.float32(1e4), a) for a in (k, v))
    out, _ = attend_to_new(
        *map(jnp.asarray, (q, dirty_k, dirty_v)),
        None,
        None,
        None,
        jnp.zeros(B, jnp.int32),
        rule,
        lengths_B=jnp.array(lengths, jnp.int32),
        numerics=Numerics(backend=backend),
    )
    assert distance(out.array, attention(q, k, v, mask, **numbers).reshape(B, T, -1)) < 1e-5


def test_filled_slots_that_cannot_be_are_refused(backend):
    q, cache = jnp.ones((2, 3, 1, 32)), KVState.zeros(2, 1, 32, 8, jnp.float32)
    starts = jnp.zeros(2, jnp.int32)
    for causal, filled_B, message in (
        (True, jnp.ones(2, jnp.int32), "filled_B .*causal=False"),
        (False, jnp.ones(3, jnp.int32), r"filled_B .*\[2\].*\[3\]"),
        (False, jnp.ones(2), r"filled_B .*float32"),
    ):
        rule = AttentionRule(1.0, causal)
        with pytest.raises(ValueError, match=message):
            cached_attention(q, cache, starts, rule, filled_B=filled_B, backend=backend)
    new, rule = jnp.ones((2, 3, 1, 32)), AttentionRule(1.0, causal=False)
    with pytest.raises(ValueError, match="lengths_B .*causal=False"):
        attend_to_new(q, new, new, None, None, cache, starts, rule, lengths_B=starts)


def test_alibi_is_left_to_xla(backend, normal):
    """Which `tests/models/test_options.py` compares with float64."""
    q, cache = jnp.ones((1, 2, 6, 32)), KVState.zeros(1, 2, 32, 8, jnp.float32)
    rule, starts = AttentionRule(1.0, alibi=8.0), jnp.zeros(1, jnp.int32)
    if backend != "xla":
        with pytest.raises(BackendError, match="alibi=8.0"):
            cached_attention(q, cache, starts, rule, backend=backend)
    with record() as decisions:
        cached_attention(q, cache, starts, rule)
    assert [decision.choice.name for decision in decisions] == ["xla"]
    with pytest.raises(ValueError, match="alibi .* -1"):
        AttentionRule(1.0, alibi=-1)


@pytest.mark.parametrize("T", [1, 3])
def test_chunks_are_computed_by_xla(T, backend, normal, attention, distance):
    """Which says so; a backend that is wanted by name refuses."""
    B, N, K, H = len(STARTS), 4, 2, 32
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
    cache, starts = KVState.of(jnp.asarray(k), jnp.asarray(v)), jnp.array(STARTS, jnp.int32)
    rule = AttentionRule(H**-0.5, chunk=8)
    if backend != "xla":
        with pytest.raises(BackendError, match="chunk=8"):
            cached_attention(jnp.asarray(q), cache, starts, rule, backend=backend)
    with record() as decisions:
        out = cached_attention(jnp.asarray(q), cache, starts, rule)
    assert [decision.choice.name for decision in decisions] == ["xla"]
    assert "chunk=8" in decisions[0].choice.reason or backend == "xla"
    own = np.array(STARTS)[:, None, None] + np.arange(T)[None, :, None]
    mask = mask_of(rule, T) & (np.arange(S) // 8 == own // 8)
    assert distance(out, attention(q, k, v, mask)) < 1e-6


def test_gradients_reach_the_sinks(backend, normal, distance):
    B, T, N, K, H = len(STARTS), 3, 4, 2, 32
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
    cache, starts = KVState.of(jnp.asarray(k), jnp.asarray(v)), jnp.array(STARTS, jnp.int32)

    def loss(backend, q, sinks):
        rule = AttentionRule(0.2, window=17, soft_cap=2.0, sinks_N=sinks)
        return (cached_attention(q, cache, starts, rule, backend=backend) ** 2).sum()

    operands = jnp.asarray(q), jnp.asarray(normal(N, seed=5))
    found, exact = (
        jax.grad(functools.partial(loss, name), argnums=(0, 1))(*operands)
        for name in (backend, "xla")
    )
    for one, other in zip(found, exact, strict=True):
        assert np.linalg.norm(other) > 0 and distance(one, np.float64(other)) < 1e-5


def test_the_gradient_of_a_query_that_sees_nothing_is_zero():
    """The first slot alone is filled, and the window of a later query has passed it."""
    q = jnp.ones((1, 1, 1, 32))
    cache = KVState(jnp.ones((1, 1, 32, 8)), jnp.ones((1, 1, 8, 32)))

    def loss(q):
        return cached_attention(q, cache, jnp.array([-1]), AttentionRule(1.0)).sum()

    value, gradient = jax.value_and_grad(loss)(q)
    assert value == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(window=0), "window .* 0"),
        (dict(window=2.5), "window .* 2.5"),
        (dict(soft_cap=0.0), "soft_cap .* 0.0"),
        (dict(scale=float("nan")), "scale .* nan"),
        (dict(causal=False, window=6), "window.*6"),
    ],
)
def test_rules_that_cannot_be_are_refused(fields, message, backend):
    q, cache = jnp.ones((1, 1, 1, 32)), KVState.zeros(1, 1, 32, 8, jnp.float32)
    with pytest.raises(ValueError, match=message):
        rule = AttentionRule(**(dict(scale=1.0) | fields))
        cached_attention(q, cache, jnp.zeros(1, jnp.int32), rule, backend=backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(q=(1, 1, 3, 32)), "3 heads.*2"),
        (dict(q=(1, 1, 4, 30)), "30.*32|32.*30"),
        (dict(starts=[0, 0]), "axis B"),
        (dict(starts=[0.5]), "integers"),
        (dict(sinks=5), "axis N"),
    ],
)
def test_operands_that_do_not_fit_are_refused_alike(change, message, backend):
    q = jnp.ones(change.get("q", (1, 1, 4, 32)))
    sinks = jnp.zeros(change["sinks"]) if "sinks" in change else None
    cache, starts = KVState.zeros(1, 2, 32, 8, jnp.float32), np.array(change.get("starts", [0]))
    with pytest.raises(ValueError, match=message):
        cached_attention(q, cache, starts, AttentionRule(1.0, sinks_N=sinks), backend=backend)
