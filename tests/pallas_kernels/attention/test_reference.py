"""The plain attention: any mask, and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule, reference
from tests.pallas_kernels.attention.cases import rule_of, truth

pytestmark = pytest.mark.core


def test_any_mask(operands, distance):
    """The queries of each sequence see the slots of a causal one in another order."""
    q, keys, values = operands(2, 5, 4, 2, 32, 24)
    rule, order = AttentionRule(0.2, soft_cap=3.0), np.random.default_rng(0).permutation(24)
    seen = np.arange(24) <= np.arange(7, 12)[None, :, None] + np.array([0, 5])[:, None, None]
    out = jax.jit(reference.attend)(
        q, keys[..., order], values[:, :, order], seen[..., order], rule
    )
    assert distance(out, truth(q, keys, values, [7, 12], rule)) < 1e-6


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("window", [None, 5])
def test_chunks(chunk, window, operands, normal, distance):
    """A query sees what a chunk of its own would show it alone, less by a window."""
    starts, T = [0, 6, 13], 9
    q, keys, values = operands(len(starts), T, 4, 2, 32, 24)
    rule = AttentionRule(0.2, window=window, chunk=chunk, soft_cap=3.0, sinks_N=normal(4))
    out = jax.jit(reference.prefill)(q, keys, values, jnp.int32(starts), rule)
    for b, start in enumerate(starts):
        for t in range(T):
            p = start + t
            own = slice(p - p % chunk, p + 1)
            shown = q[b : b + 1, t : t + 1], keys[b : b + 1, ..., own], values[b : b + 1, :, own]
            alone = dataclasses.replace(rule, chunk=None)
            assert distance(out[b : b + 1, t : t + 1], truth(*shown, [p % chunk], alone)) < 1e-6


@pytest.mark.parametrize("options", ["plain", "all", "not-causal-all"])
def test_gradients_are_finite_where_a_query_sees_nothing(options, operands, normal):
    """The second sequence sees nothing, and its operands have no influence."""
    q, keys, values = operands(2, 3, 4, 2, 32, 20)
    rule = rule_of(options, 0.2, 4, normal)

    def loss(*operands):
        return (reference.prefill(*operands, jnp.int32([4, -9]), rule) ** 2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, keys, values)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.asarray(gradient[0]).any() and not np.asarray(gradient[1]).any()


def test_gradients_equal_differences(operands, normal):
    """Of the sinks too, with scores far above the soft cap among those that count."""
    q, keys, values = operands(1, 3, 4, 2, 16, 20)
    rule = rule_of("all", 1.0, 4, normal)

    def loss(q, keys, values, sinks):
        capped = AttentionRule(1.0, window=rule.window, soft_cap=rule.soft_cap, sinks_N=sinks)
        out = reference.prefill(q, keys, values, jnp.int32([12]), capped)
        return (out * jnp.arange(16, dtype=jnp.float32)[None, None, None]).sum()

    operands = [q.at[0, 0].multiply(100), keys, values, jnp.asarray(rule.sinks_N)]
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*operands)
    for i, gradient in enumerate(gradients):
        assert np.isfinite(gradient).all()
        direction = normal(*gradient.shape, seed=7 + i)
        step = np.float32(1e-2)
        ends = (
            loss(*operands[:i], operands[i] + sign * step * direction, *operands[i + 1 :])
            for sign in (np.float32(1), np.float32(-1))
        )
        found = float(jnp.vdot(gradient, direction))
        np.testing.assert_allclose((next(ends) - next(ends)) / (2 * step), found, rtol=2e-2)


def test_the_cache_is_neither_cast_nor_copied(optimised):
    """No array of the program but the cache itself has its size."""
    of, (K, H, S) = jax.ShapeDtypeStruct, (2, 64, 4096)
    operands = (
        of((1, 1, 8, H), jnp.bfloat16),
        of((1, K, H, S), jnp.bfloat16),
        of((1, K, S, H), jnp.bfloat16),
        of((1,), jnp.int32),
    )
    compiled = jax.jit(reference.prefill).lower(*operands, AttentionRule(0.1)).compile(optimised)
    # Scores of 8 heads in float32, three times.
    assert compiled.memory_analysis().temp_size_in_bytes <= 3 * 8 * S * 4 < K * S * H * 2
