"""Norms against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.nn import (
    BiasedRMSNorm,
    GroupedRMSNorm,
    LayerNorm,
    RMSNorm,
    layer_norm,
    only_shapes,
    rms_norm,
)

pytestmark = pytest.mark.core

D = 67


def rms_normed(x, epsilon):
    x = np.float64(x)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)


def layer_normed(x, epsilon):
    x = np.float64(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)


@pytest.mark.parametrize("groups", [1, 3])
def test_rms_norm_of_groups(groups, normal, distance):
    """Each group has a mean of its own; the first is a thousand times larger."""
    x, scale = normal(2, 5, 3 * D), normal(groups, 3 * D // groups, seed=1)
    x[..., :D] *= 1e3
    norm = GroupedRMSNorm(groups, 3 * D, epsilon=1e-5)
    norm.scale[...] = jnp.asarray(scale)
    truth = rms_normed(x.reshape(2, 5, groups, -1), 1e-5) * scale
    assert distance(norm(jnp.asarray(x)), truth.reshape(x.shape)) < 1e-6


@pytest.mark.parametrize("dtype, most", [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_rms_norm_with_a_bias(dtype, most, normal, distance):
    """A result of 16 bits is rounded once, after the bias."""
    x, scale, bias = normal(2, 5, D), normal(D, seed=1), normal(D, seed=2)
    norm = BiasedRMSNorm(D, epsilon=1e-5)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    given = jnp.asarray(x, dtype)
    found = norm(given)
    truth = rms_normed(np.asarray(given, np.float64), 1e-5) * scale + bias
    assert found.dtype == dtype and distance(found.astype(jnp.float32), truth) < most
    if dtype == jnp.bfloat16:
        exact = jnp.asarray(truth, jnp.float32).astype(dtype)
        assert (found == exact).mean() > 0.99


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm(epsilon, size, normal, distance):
    x, scale = np.float32(size) * normal(2, 3, D), normal(D, seed=1)
    truth = rms_normed(x, epsilon) * scale
    assert distance(rms_norm(jnp.asarray(x), jnp.asarray(scale), epsilon), truth) < 1e-6
    norm = RMSNorm(D, epsilon=epsilon)
    assert distance(norm(jnp.asarray(x)), truth / scale) < 1e-6
    norm.scale[...] = jnp.asarray(scale)
    assert distance(norm(jnp.asarray(x)), truth) < 1e-6


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm_without_a_scale(epsilon, size, normal, distance):
    x = np.float32(size) * normal(2, 3, 5, D)
    norm, truth = RMSNorm(D, epsilon=epsilon, use_scale=False), rms_normed(x, epsilon)
    assert not jax.tree.leaves(nnx.state(norm))
    assert distance(norm(jnp.asarray(x)), truth) < 1e-6
    assert distance(rms_norm(jnp.asarray(x), None, epsilon), truth) < 1e-6
    scaled = RMSNorm(D, epsilon=epsilon)
    np.testing.assert_array_equal(norm(jnp.asarray(x)), scaled(jnp.asarray(x)))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("use_bias", [False, True])
def test_layer_norm(epsilon, size, use_bias, normal, distance):
    # The mean is four times the deviation: a norm that forgets it is far off.
    x = np.float32(size) * (normal(2, 3, D) + np.float32(4))
    scale, bias = normal(D, seed=1), normal(D, seed=2)
    truth = layer_normed(x, epsilon) * scale + bias * use_bias
    in_float32 = jnp.asarray(bias) if use_bias else None
    assert (
        distance(layer_norm(jnp.asarray(x), jnp.asarray(scale), in_float32, epsilon), truth) < 2e-6
    )
    norm = LayerNorm(D, epsilon=epsilon, use_bias=use_bias)
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(norm))}
    assert names == ({"scale", "bias"} if use_bias else {"scale"})
    assert distance(norm(jnp.asarray(x)), layer_normed(x, epsilon)) < 2e-6
    norm.scale[...] = jnp.asarray(scale)
    if use_bias:
        norm.bias[...] = jnp.asarray(bias)
    assert distance(jax.jit(norm)(jnp.asarray(x)), truth) < 2e-6


def test_layer_norm_without_scale_and_bias(normal, distance):
    x = normal(3, D) - np.float32(2)
    assert distance(layer_norm(jnp.asarray(x), None, None, 1e-5), layer_normed(x, 1e-5)) < 2e-6


def test_a_mean_far_above_the_deviation_does_not_cancel(normal, distance):
    # The mean of the squares less the squared mean is off by more than the variance here.
    x = normal(2, D) + np.float32(4096)
    assert distance(layer_norm(jnp.asarray(x), None, None, 1e-5), layer_normed(x, 1e-5)) < 1e-3


def test_rms_norm_of_narrow_x_is_rounded_once(normal):
    # Squares overflow float16.
    x, scale = jnp.asarray(300 * normal(2, D), jnp.float16), jnp.ones(D, jnp.float16)
    expected = rms_norm(x.astype(jnp.float32), scale, 1e-6).astype(jnp.float16)
    np.testing.assert_array_equal(rms_norm(x, scale, 1e-6), expected)
    np.testing.assert_array_equal(rms_norm(x, None, 1e-6), expected)
    np.testing.assert_array_equal(rms_norm(jnp.zeros((1, D)), scale, 1e-6), np.zeros((1, D)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_layer_norm_of_narrow_x_is_rounded_once(dtype, normal):
    x = jnp.asarray(300 * normal(2, D), dtype)
    scale, bias = (jnp.asarray(normal(D, seed=seed), dtype) for seed in (1, 2))
    normed = layer_norm(x, scale, bias, 1e-6)
    assert normed.dtype == dtype
    expected = layer_norm(x.astype(jnp.float32), scale, bias, 1e-6).astype(dtype)
    np.testing.assert_array_equal(normed, expected)
    # The mean of 64 equal numbers is exact.
    constant = layer_norm(jnp.full((1, 64), 7, dtype), None, bias[:64], 1e-6)
    np.testing.assert_array_equal(constant, bias[None, :64])


def test_a_fresh_norm_has_only_shapes_inside_only_shapes():
    with only_shapes():
        norm = LayerNorm(D, epsilon=1e-5, dtype=jnp.bfloat16)
    shapes = {path[0]: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(norm))}
    assert shapes == dict.fromkeys(("scale", "bias"), jax.ShapeDtypeStruct((D,), jnp.bfloat16))


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_a_norm_of_another_width_is_refused(norm, normal):
    with pytest.raises((TypeError, ValueError), match=rf"{D - 1}.*{D}"):
        norm(D, epsilon=1e-5)(jnp.asarray(normal(2, D - 1)))
