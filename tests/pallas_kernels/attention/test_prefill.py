"""Prefill against softmax(q k) v in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule
from tests.pallas_kernels.attention.cases import (
    BACKENDS,
    decoded,
    prefilled,
    rule_of,
    truth,
)

pytestmark = pytest.mark.core


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("T", "N", "K", "H", "options"),
    [
        (1, 2, 2, 64, "plain"),
        (17, 4, 2, 80, "window-20"),
        (17, 7, 1, 32, "sinks"),
        (129, 4, 1, 96, "plain"),
        (129, 2, 1, 32, "all"),
        (5, 16, 2, 128, "soft-cap"),
        (17, 2, 1, 256, "window-1"),
        (5, 4, 2, 512, "all"),
        (3, 2, 1, 320, "plain"),
        (17, 4, 2, 80, "not-causal"),
        (33, 2, 1, 32, "not-causal-all"),
        (65, 4, 2, 80, "both-sides"),
        (1, 2, 1, 32, "both-sides"),
        (33, 6, 2, 32, "both-sides-all"),
    ],
)
def test_prefill(backend, T, N, K, H, options, operands, normal, distance):
    """New tokens from the first slot on, within a block, at its border, and up to the last slot.

    No block ends at the last slot.
    """
    S = T + 37
    starts = [0, 7, 16, 37]
    q, keys, values = operands(len(starts), T, N, K, H, S)
    rule = rule_of(options, H**-0.5, N, normal)
    out = prefilled(backend, q, keys, values, starts, rule)
    assert out.dtype == q.dtype
    assert distance(out, truth(q, keys, values, starts, rule)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_caches(backend, dtype, operands, distance):
    """Operands are exact in the cache's dtype: only the weights are rounded to it, once, in
    relation to their size.
    """
    q, keys, values = operands(2, 20, 8, 2, 64, 64, dtype)
    rule, rounding = AttentionRule(0.125), float(jnp.finfo(dtype).eps) / 2
    out = prefilled(backend, q, keys, values, [0, 44], rule, blocks=None)
    assert out.dtype == jnp.float32
    assert distance(out, truth(q, keys, values, [0, 44], rule)) < rounding
    last = q[:, -1:]
    out = decoded(backend, last, keys, values, [20, 64], rule, blocks=None)
    assert distance(out, truth(last, keys, values, [19, 63], rule)) < rounding
    for run, tokens, at in ((prefilled, q, [0, 44]), (decoded, last, [20, 64])):
        narrow = run(backend, tokens.astype(dtype), keys, values, at, rule, blocks=None)
        assert narrow.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_query_that_sees_nothing_gets_zeros(backend, causal, sinks, operands, normal, distance):
    """Tokens at negative positions, and a sequence without tokens; a sink has no value."""
    q, keys, values = operands(2, 4, 2, 1, 32, 20)
    rule = AttentionRule(0.2, causal, sinks_N=normal(2) if sinks else None)
    out = np.asarray(prefilled(backend, q, keys, values, [-2, -9], rule, blocks=None))
    assert not out[1].any() and out[0, :2].any() == (not causal)
    assert distance(out, truth(q, keys, values, [-2, -9], rule)) < 1e-6
    assert not np.asarray(decoded(backend, q, keys, values, [0, 0], rule, blocks=None)).any()


def test_prefill_never_counts_unfilled_slots(operands, distance):
    q, keys, values = operands(2, 3, 2, 1, 32, 40)
    unfilled = np.arange(40) >= np.array([18, 33])[:, None]
    dirty_keys = jnp.where(unfilled[:, None, None], jnp.nan, keys)
    dirty_values = jnp.where(unfilled[:, None, :, None], jnp.nan, values)
    for rule in (
        AttentionRule(0.2),
        AttentionRule(0.2, window=5),
        AttentionRule(0.2, causal=False),
    ):
        out = prefilled("pallas", q, dirty_keys, dirty_values, [15, 30], rule)
        assert distance(out, truth(q, keys, values, [15, 30], rule)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", ["not-causal", "both-sides", "both-sides-all"])
def test_tokens_see_the_filled_slots_alone(backend, options, operands, normal, distance):
    """Of texts of several lengths, one of them empty. Queries of padding are finite."""
    T, filled = 70, [70, 33, 1, 0, 64]
    q, keys, values = operands(len(filled), T, 4, 2, 32, T)
    unfilled = np.arange(T) >= np.array(filled)[:, None]
    # The reference computes with what unfilled slots hold.
    dirt = jnp.float32(np.nan if backend == "pallas" else 1e9)
    dirty_keys = jnp.where(unfilled[:, None, None], dirt, keys)
    dirty_values = jnp.where(unfilled[:, None, :, None], dirt, values)
    rule, starts = rule_of(options, 0.2, 4, normal), [0] * len(filled)
    out = prefilled(backend, q, dirty_keys, dirty_values, starts, rule, filled=filled)
    assert distance(out, truth(q, keys, values, starts, rule, filled)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales_that_are_not_positive(backend, scale, operands, distance):
    """The highest score then does not have the highest weight."""
    q, keys, values = operands(2, 19, 4, 2, 32, 40)
    rule = AttentionRule(scale)
    out = prefilled(backend, q, keys, values, [0, 21], rule)
    assert distance(out, truth(q, keys, values, [0, 21], rule)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_large_scores_do_not_overflow(backend, soft_cap, operands, distance):
    q, keys, values = operands(1, 4, 2, 1, 64, 40)
    rule = AttentionRule(1e3, soft_cap=soft_cap)
    expected = truth(q, keys, values, [36], rule)
    # Scores of 1e4 are known to 1e-3 in float32.
    out = prefilled(backend, q, keys, values, [36], rule)
    assert distance(out, expected) < 1e-3
    out = decoded(backend, q[:, -1:], keys, values, [40], rule)
    assert distance(out, expected[:, -1:]) < 1e-3
