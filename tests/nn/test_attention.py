"""Attention against scores, mask, softmax and weighted sum in float64 NumPy.

With a cache, at offsets and ragged.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import KVState, attend, causal_mask, dot_product_attention

attend_jit = jax.jit(dot_product_attention)


def causal(B, T):
    return np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))


# Batches 1-3, lengths 1-600, ratios 1, 2, 4, 7 and all heads to one, head widths 32-256: each value
# beside various others.
@pytest.mark.parametrize(
    ("B", "T", "N", "K", "H"),
    [
        (1, 1, 1, 1, 32),
        pytest.param(1, 2, 4, 2, 64, marks=pytest.mark.core),
        (2, 7, 7, 1, 48),
        pytest.param(3, 33, 8, 2, 32, marks=pytest.mark.core),
        (1, 128, 4, 4, 128),
        (2, 129, 14, 2, 64),
        pytest.param(1, 257, 6, 1, 256, marks=pytest.mark.core),
        (3, 300, 8, 4, 80),
        (1, 599, 7, 7, 96),
        pytest.param(2, 600, 14, 2, 64, marks=pytest.mark.core),
        (1, 600, 32, 1, 32),
    ],
)
def test_causal_self_attention(B, T, N, K, H, normal, attention, distance):
    q, k, v = normal(B, T, N, H), normal(B, T, K, H, seed=1), normal(B, T, K, H, seed=2)
    out = attend_jit(q, k, v, causal(B, T))
    assert out.dtype == jnp.float32
    assert distance(out, attention(q, k, v, causal(B, T))) < 1e-6


@pytest.mark.core
def test_without_a_mask_every_query_sees_every_slot(normal, attention, distance):
    q, k, v = normal(2, 3, 4, 32), normal(2, 5, 2, 32, seed=1), normal(2, 5, 2, 32, seed=2)
    everything = np.ones((2, 3, 5), bool)
    assert distance(dot_product_attention(q, k, v), attention(q, k, v, everything)) < 1e-6
    assert (
        distance(
            dot_product_attention(q, k, v, scale=0.5), attention(q, k, v, everything, scale=0.5)
        )
        < 1e-6
    )


@pytest.mark.core
def test_any_mask_and_a_query_that_sees_nothing(normal, attention, distance):
    q, k, v = normal(2, 6, 4, 32), normal(2, 9, 2, 32, seed=1), normal(2, 9, 2, 32, seed=2)
    mask = np.random.default_rng(0).random((2, 6, 9)) < 0.5
    mask[0, 2] = mask[1, 5] = False
    out = np.asarray(dot_product_attention(q, k, v, jnp.asarray(mask)))
    assert distance(out, attention(q, k, v, mask)) < 1e-6
    assert not out[0, 2].any() and not out[1, 5].any()


@pytest.mark.core
def test_large_scores_do_not_overflow(normal, attention, distance):
    q, k, v = (
        100 * normal(1, 4, 2, 64),
        100 * normal(1, 4, 2, 64, seed=1),
        normal(1, 4, 2, 64, seed=2),
    )
    out = dot_product_attention(q, k, v, causal(1, 4))
    # Scores of 1e4 are known to 1e-3 in float32.
    assert distance(out, attention(q, k, v, causal(1, 4))) < 1e-4


@pytest.mark.core
@pytest.mark.parametrize(
    "starts", [[0], [599], [37], [0, 5, 21], [3] * 8, [0, 1, 2, 3, 5, 8, 13, 21, 34]], ids=str
)
@pytest.mark.parametrize("T", [1, 4])
def test_new_tokens_after_a_ragged_past(starts, T, normal, attention, distance):
    """Each sequence's past fills its first slots; slots beyond it are never read."""
    B, S, N, K, H = len(starts), max(starts) + T + 3, 4, 2, 32
    q, k, v = normal(B, T, N, H), normal(B, S, K, H, seed=1), normal(B, S, K, H, seed=2)
    positions = np.int32(starts)[:, None] + np.arange(T, dtype=np.int32)

    def fresh(x):
        return np.take_along_axis(x, positions[..., None, None], axis=1)

    @jax.jit
    def step(q, past, k_new, v_new):
        cache = past.write(k_new, v_new, positions[:, 0])
        return attend(q, cache, causal_mask(positions, cache.length)), cache

    past = np.arange(S) < np.int32(starts)[:, None]

    def garbage(x):
        return jnp.asarray(np.where(past[..., None, None], x, np.float32(1e4)))

    out, cache = step(q, KVState.of(garbage(k), garbage(v)), fresh(k), fresh(v))
    mask = np.arange(S)[None, None] <= positions[..., None]
    assert distance(out, attention(q, k, v, mask)) < 1e-6
    held = np.arange(S) < np.int32(starts)[:, None] + T
    np.testing.assert_array_equal(np.asarray(cache.values).transpose(0, 2, 1, 3)[held], v[held])
    np.testing.assert_array_equal(np.asarray(cache.keys).transpose(0, 3, 1, 2)[held], k[held])


@pytest.mark.core
def test_a_narrow_cache_rounds_and_softmax_stays_in_float32(normal, attention, distance):
    """bfloat16 has 8 bits: with operands that it holds exactly, only the softmax's weights are
    rounded.
    """

    def narrow(x):
        return jnp.asarray(x, jnp.bfloat16)

    q, k, v = (
        narrow(normal(2, 3, 4, 64)),
        narrow(normal(2, 50, 2, 64, seed=1)),
        narrow(normal(2, 50, 2, 64, seed=2)),
    )
    mask = np.ones((2, 3, 50), bool)
    out = attend(q.astype(jnp.float32), KVState.of(k, v), jnp.asarray(mask))
    assert out.dtype == jnp.float32
    assert distance(out, attention(q, k, v, mask)) < 2**-8
    assert dot_product_attention(q, k, v).dtype == jnp.bfloat16


@pytest.mark.core
def test_causal_mask_shows_slots_up_to_the_position():
    mask = causal_mask(jnp.array([[0, 1], [2, 9]]), 4)
    assert mask.dtype == bool
    expected = [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    np.testing.assert_array_equal(mask, np.array(expected, bool))


@pytest.mark.core
def test_gradients_are_those_of_the_formula(normal):
    """By central differences of the float32 function, along one direction for each operand."""
    operands = [normal(1, 3, 2, 32), normal(1, 3, 1, 32, seed=1), normal(1, 3, 1, 32, seed=2)]

    def loss(q, k, v):
        return (dot_product_attention(q, k, v, causal(1, 3)) ** 2).sum()

    def moved(i, direction, step):
        changed = operands[i] + np.float32(step) * direction
        return float(loss(*operands[:i], changed, *operands[i + 1 :]))

    for i, gradient in enumerate(jax.grad(loss, argnums=(0, 1, 2))(*operands)):
        direction = normal(*operands[i].shape, seed=3)
        slope = (moved(i, direction, 1e-2) - moved(i, direction, -1e-2)) / 2e-2
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-2)
