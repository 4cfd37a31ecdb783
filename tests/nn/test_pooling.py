"""Pooling against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import pool

pytestmark = pytest.mark.core

LENGTHS = [9, 4, 1, 0, 13]
POOLED = {
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_vectors_of_texts(kind, dtype, normal, distance):
    """A text without tokens gets zeros. Padding holds what is no number."""
    states = jnp.asarray(normal(len(LENGTHS), 13, 37), dtype)
    dirty = jnp.where(
        np.arange(13)[None, :, None] < np.array(LENGTHS)[:, None, None], states, np.nan
    )
    out = jax.jit(pool, static_argnames="kind")(dirty, jnp.array(LENGTHS), kind=kind)
    expected = np.zeros((len(LENGTHS), 37))
    for row, length in enumerate(LENGTHS):
        if length:
            expected[row] = POOLED[kind](np.float64(states[row, :length]))
    assert out.dtype == jnp.float32 and distance(out, expected) < 1e-6


def test_no_pooling_and_no_lengths(normal):
    states = normal(2, 5, 7)
    np.testing.assert_array_equal(pool(states, kind="none"), states)
    out = pool(states, jnp.array([5, 2]), "none")
    np.testing.assert_array_equal(out[1, 2:], np.zeros((3, 7)))
    np.testing.assert_allclose(pool(states), states.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("states", "lengths", "kind", "message"),
    [
        ((2, 5, 7), None, "rank", "'rank'"),
        ((5, 7), None, "mean", r"\[5, 7\]"),
        ((2, 5, 7), jnp.ones(3, jnp.int32), "mean", r"\[2\].*\[3\]"),
        ((2, 5, 7), jnp.ones(2), "mean", "float32"),
    ],
)
def test_what_cannot_be_pooled_is_refused(states, lengths, kind, message):
    with pytest.raises(ValueError, match=message):
        pool(jnp.ones(states), lengths, kind)
