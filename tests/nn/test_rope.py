"""Rotary embeddings against float64 NumPy, at positions up to a million."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import RopeConfig, Yarn, apply_rope, rope_table
from tests.nn.rope_frequencies import frequencies

pytestmark = pytest.mark.core

POSITIONS = np.concatenate(
    [np.arange(601), [5_000, 8_192, 32_767, 65_536, 99_999, 100_000, 199_999, 10**6, 10**6 + 1]]
)
POSITIONS = POSITIONS.astype(np.int32).reshape(2, -1)
LLAMA_3 = tuple([1.0] * 12 + [1.5, 2.25, 4.0, 7.5] + [8.0] * 16)
LONG = tuple(np.linspace(1.03, 61.7, 24).tolist())
CONFIGS = {
    "llama": RopeConfig(64, interleaved=True),
    "llama 3": RopeConfig(64, base=500_000.0, interleaved=True, factors=LLAMA_3),
    "qwen2": RopeConfig(64, base=1_000_000.0),
    "glm: half a head": RopeConfig(32, interleaved=True),
    "linear scale": RopeConfig(64, scale=4.0),
    "linear, odd": RopeConfig(42, base=12_345.6, scale=3.7, interleaved=True),
    "faster than a turn": RopeConfig(4, base=0.01),
    "width 2": RopeConfig(2),
    "proportional": RopeConfig(64, base=1e6, factors=(1.0,) * 8 + (1e30,) * 24),
    "pairs that stand still": RopeConfig(
        16, scale=3.0, factors=(1.0, np.inf, 2.5, 1.0, np.inf, 1.0, 1.0, np.inf), magnitude=1.3
    ),
    "longrope": RopeConfig(48, factors=LONG, magnitude=1.19),
    "gpt-oss": RopeConfig(64, base=150_000.0, scale=32.0, yarn=Yarn(4096), magnitude=1.3465735903),
    "yarn, odd": RopeConfig(46, 50_000.5, True, 16.7, yarn=Yarn(1_023, 29.5, 1.25), magnitude=0.87),
    "yarn and factors": RopeConfig(48, scale=2.3, factors=LONG, yarn=Yarn(4_097, 8.0)),
    "yarn, all but one pair slowed": RopeConfig(64, scale=40.0, yarn=Yarn(5)),
    "yarn, every pair kept": RopeConfig(64, scale=40.0, yarn=Yarn(10**9)),
    "yarn, a slope beyond the pairs": RopeConfig(
        16, base=100.0, scale=6.5, yarn=Yarn(635, 32.0, 0.01)
    ),
    "yarn, one beta": RopeConfig(34, base=2_000.0, scale=3.0, yarn=Yarn(1_000, 7.5, 7.5)),
}


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "_"))
def config(request):
    return CONFIGS[request.param]


def angles(config, positions):
    """Radians, float64 [..., width / 2]: the formula of the paper."""
    return positions[..., None] * frequencies(config)


def bound(positions, magnitude=1.0):
    """A frequency is rounded to 2**-32 turns, half of it off at most.

    Then the angle, at most pi, its cosine and the product with the magnitude are float32.
    """
    of_one = 2 * np.pi * 2.0**-33 * positions[..., None] + 3 * np.pi * 2.0**-24 + 2.0**-22
    return magnitude * of_one


def test_a_frequency_is_rounded_once(config):
    exact = frequencies(config) / (2 * np.pi) % 1 * 2.0**32
    apart = np.abs(config.turns() - exact)
    # A frequency just below a full turn is rounded to 0.
    assert (np.minimum(apart, 2.0**32 - apart) <= 0.5 + 2.0**-18).all()


def test_angles_are_exact_at_any_position(config):
    cos, sin = jax.jit(rope_table, static_argnums=1)(POSITIONS, config)
    assert cos.dtype == sin.dtype == jnp.float32 and cos.shape == (
        *POSITIONS.shape,
        config.width // 2,
    )
    exact, error = angles(config, POSITIONS), bound(POSITIONS, config.magnitude)
    assert (np.abs(cos - config.magnitude * np.cos(exact)) <= error).all()
    assert (np.abs(sin - config.magnitude * np.sin(exact)) <= error).all()


def test_pairs_turn_by_their_angles_and_the_rest_passes(config, normal):
    x = normal(*POSITIONS.shape, 3, 80)
    turned = np.asarray(apply_rope(jnp.asarray(x), rope_table(POSITIONS, config), config))
    half = config.width // 2
    ahead = np.arange(half)
    first, second = (2 * ahead, 2 * ahead + 1) if config.interleaved else (ahead, ahead + half)
    a, b, angle = (
        np.float64(x[..., first]),
        np.float64(x[..., second]),
        angles(config, POSITIONS)[:, :, None],
    )
    error = bound(POSITIONS, config.magnitude)[:, :, None] * (np.abs(a) + np.abs(b)) + 2.0**-22
    cos, sin = config.magnitude * np.cos(angle), config.magnitude * np.sin(angle)
    assert (np.abs(turned[..., first] - (a * cos - b * sin)) <= error).all()
    assert (np.abs(turned[..., second] - (b * cos + a * sin)) <= error).all()
    np.testing.assert_array_equal(turned[..., config.width :], x[..., config.width :])


def test_position_zero_only_multiplies_by_the_magnitude(config, normal):
    x = jnp.asarray(normal(1, 1, 2, 80))
    expected = x.at[..., : config.width].multiply(jnp.float32(config.magnitude))
    np.testing.assert_array_equal(
        apply_rope(x, rope_table(jnp.zeros((1, 1), jnp.int32), config), config), expected
    )


def test_narrow_x_is_turned_in_float32_and_rounded_once(normal):
    config = CONFIGS["qwen2"]
    x, table = (
        jnp.asarray(normal(*POSITIONS.shape, 3, 80), jnp.bfloat16),
        rope_table(POSITIONS, config),
    )
    turned = apply_rope(x, table, config)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        turned, apply_rope(x.astype(jnp.float32), table, config).astype(jnp.bfloat16)
    )


def test_a_head_narrower_than_the_rotation_is_refused(normal):
    config = RopeConfig(64)
    with pytest.raises(ValueError, match="rope rotates 64 elements of a head, the head has 32"):
        apply_rope(normal(1, 8, 1, 32), rope_table(POSITIONS[:1, :8], config), config)


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
        (dict(factors=(1.0, 0.0)), "rope factors must be positive, got (1.0, 0.0)"),
        (
            dict(factors=(1.0, float("nan"))),
            "rope factors must be positive, got (1.0, nan)",
        ),
        (dict(magnitude=0.0), "rope magnitude must be positive and finite, got 0.0"),
        (dict(magnitude=float("inf")), "rope magnitude must be positive and finite, got inf"),
        (dict(yarn=Yarn(64), base=1.0), "YaRN needs a rope base above 1, got 1.0"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(RopeConfig(4), **change)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0,), "the original context of YaRN must be positive, got 0"),
        ((-5,), "the original context of YaRN must be positive, got -5"),
        ((64, 1.0, 32.0), "got beta_slow 32.0 and beta_fast 1.0"),
        ((64, 32.0, 0.0), "got beta_slow 0.0 and beta_fast 32.0"),
        ((64, float("inf"), 1.0), "got beta_slow 1.0 and beta_fast inf"),
        ((64, 32.0, float("nan")), "got beta_slow nan and beta_fast 32.0"),
    ],
)
def test_impossible_bounds_of_yarn_are_refused(numbers, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Yarn(*numbers)


def test_frequencies_above_a_turn_a_position_lose_whole_turns():
    """As do those of an absurd base, which would not fit into 64 bits otherwise."""
    slow, fast = RopeConfig(4, base=100.0), RopeConfig(4, base=100.0, scale=1e-3)
    turns = slow.base ** (-np.arange(0, 4, 2) / 4) / fast.scale / (2 * np.pi)
    expected = np.round((turns - np.floor(turns)) * 2.0**32)
    np.testing.assert_allclose(fast.turns().astype(np.float64), expected, atol=1)
    assert RopeConfig(8, base=1e-30).turns().dtype == np.uint32
    with pytest.raises(ValueError, match="base 1e-300 and scale 1e-300 give no finite frequency"):
        RopeConfig(8, base=1e-300, scale=1e-300).turns()
