"""Rotary embeddings against float64 NumPy, at positions up to 200,000."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import RopeConfig, apply_rope, rope_table

pytestmark = pytest.mark.core

POSITIONS = np.array(
    [
        [0, 1, 2, 3, 511, 4_095, 8_192, 32_767],
        [65_536, 99_999, 100_000, 131_071, 150_001, 180_000, 199_999, 200_000],
    ],
    np.int32,
)
LLAMA_3 = tuple([1.0] * 12 + [1.5, 2.25, 4.0, 7.5] + [8.0] * 16)
CONFIGS = {
    "llama": RopeConfig(64, interleaved=True),
    "llama 3": RopeConfig(64, base=500_000.0, interleaved=True, factors=LLAMA_3),
    "qwen2": RopeConfig(64, base=1_000_000.0),
    "glm: half a head": RopeConfig(32, interleaved=True),
    "linear scale": RopeConfig(64, scale=4.0),
    "faster than a turn": RopeConfig(4, base=0.01),
    "width 2": RopeConfig(2),
}


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "_"))
def config(request):
    return CONFIGS[request.param]


def angles(config, positions):
    """Radians, float64 [..., width / 2]: the formula of the paper."""
    frequencies = config.base ** (-np.arange(0, config.width, 2) / config.width) / config.scale
    if config.factors is not None:
        frequencies = frequencies / np.array(config.factors)
    return positions[..., None] * frequencies


def bound(positions):
    """A frequency is rounded to 2**-32 turns, half of it off at most.

    Then the angle, at most pi, and its cosine are float32.
    """
    return 2 * np.pi * 2.0**-33 * positions[..., None] + 3 * np.pi * 2.0**-24 + 2.0**-22


def test_angles_are_exact_at_any_position(config):
    cos, sin = jax.jit(rope_table, static_argnums=1)(POSITIONS, config)
    assert cos.dtype == sin.dtype == jnp.float32 and cos.shape == (2, 8, config.width // 2)
    exact = angles(config, POSITIONS)
    assert (np.abs(cos - np.cos(exact)) <= bound(POSITIONS)).all()
    assert (np.abs(sin - np.sin(exact)) <= bound(POSITIONS)).all()


def test_pairs_turn_by_their_angles_and_the_rest_passes(config, normal):
    x = normal(2, 8, 3, 80)
    turned = np.asarray(apply_rope(jnp.asarray(x), rope_table(POSITIONS, config), config))
    half = config.width // 2
    ahead = np.arange(half)
    first, second = (2 * ahead, 2 * ahead + 1) if config.interleaved else (ahead, ahead + half)
    a, b, angle = (
        np.float64(x[..., first]),
        np.float64(x[..., second]),
        angles(config, POSITIONS)[:, :, None],
    )
    error = bound(POSITIONS)[:, :, None] * (np.abs(a) + np.abs(b)) + 2.0**-22
    assert (np.abs(turned[..., first] - (a * np.cos(angle) - b * np.sin(angle))) <= error).all()
    assert (np.abs(turned[..., second] - (b * np.cos(angle) + a * np.sin(angle))) <= error).all()
    np.testing.assert_array_equal(turned[..., config.width :], x[..., config.width :])


def test_position_zero_leaves_x_as_it_is(config, normal):
    x = jnp.asarray(normal(1, 1, 2, 80))
    np.testing.assert_array_equal(
        apply_rope(x, rope_table(jnp.zeros((1, 1), jnp.int32), config), config), x
    )


def test_narrow_x_is_turned_in_float32_and_rounded_once(normal):
    config = CONFIGS["qwen2"]
    x, table = jnp.asarray(normal(2, 8, 3, 80), jnp.bfloat16), rope_table(POSITIONS, config)
    turned = apply_rope(x, table, config)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        turned, apply_rope(x.astype(jnp.float32), table, config).astype(jnp.bfloat16)
    )


def test_a_head_narrower_than_the_rotation_is_refused(normal):
    config = RopeConfig(64)
    with pytest.raises(ValueError, match="rope rotates 64 elements of a head, the head has 32"):
        apply_rope(normal(1, 8, 1, 32), rope_table(POSITIONS[:1], config), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=0), "rope width must be even and at least 2, got 0"),
        (dict(width=7), "rope width must be even and at least 2, got 7"),
        (dict(width=-2), "rope width must be even and at least 2, got -2"),
        (dict(base=0.0), "rope base and scale must be positive and finite, got 0.0 and 1.0"),
        (
            dict(base=float("nan")),
            "rope base and scale must be positive and finite, got nan and 1.0",
        ),
        (dict(scale=-1.0), "rope base and scale must be positive and finite, got 10000.0 and -1.0"),
        (
            dict(scale=float("inf")),
            "rope base and scale must be positive and finite, got 10000.0 and inf",
        ),
        (dict(factors=(1.0, 2.0, 3.0)), "rope of width 4 takes 2 factors, got 3"),
        (dict(factors=(1.0, 0.0)), "rope factors must be positive and finite, got (1.0, 0.0)"),
        (
            dict(factors=(1.0, float("nan"))),
            "rope factors must be positive and finite, got (1.0, nan)",
        ),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(RopeConfig(4), **change)
