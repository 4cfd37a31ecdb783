"""Norms against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import RMSNorm, rms_norm

pytestmark = pytest.mark.core

D = 64


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm(epsilon, size, normal, distance):
    x, scale = np.float32(size) * normal(2, 3, D), normal(D, seed=1)
    truth = (
        np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=-1, keepdims=True) + epsilon) * scale
    )
    assert distance(rms_norm(jnp.asarray(x), jnp.asarray(scale), epsilon), truth) < 1e-6
    norm = RMSNorm(D, epsilon=epsilon)
    assert distance(norm(jnp.asarray(x)), truth / scale) < 1e-6
    norm.scale[...] = jnp.asarray(scale)
    assert distance(norm(jnp.asarray(x)), truth) < 1e-6


def test_rms_norm_of_narrow_x_is_rounded_once(normal):
    # Squares overflow float16.
    x, scale = (
        jnp.asarray(300 * normal(2, D), jnp.float16),
        jnp.ones(D, jnp.float16),
    )
    expected = rms_norm(x.astype(jnp.float32), scale, 1e-6).astype(jnp.float16)
    np.testing.assert_array_equal(rms_norm(x, scale, 1e-6), expected)
    np.testing.assert_array_equal(rms_norm(jnp.zeros((1, D)), scale, 1e-6), np.zeros((1, D)))
