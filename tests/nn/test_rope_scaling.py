"""What a file's `rope.scaling` keys, sections and temperatures mean, against llama.cpp's formulas.

All of them are computed here in float64.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import (
    RopeConfig,
    Yarn,
    attention_temperature,
    longrope_factors,
    rope_table,
    yarn_magnitude,
)

pytestmark = pytest.mark.core


def mscale(factor, multiplier):
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def llama_cpp_magnitude(kind, factor, log_multiplier, attn_factor, deepseek2):
    """The factor of cosines and sines: first that of the context, then that of each rotation."""
    found = 1.0
    if kind == "yarn":
        if log_multiplier:
            own = log_multiplier if deepseek2 and log_multiplier != 1 else 1.0
            found = mscale(factor, own) / mscale(factor, log_multiplier)
        else:
            found = mscale(factor, 1.0)
        found /= 1 + 0.1 * math.log(factor)
    found *= attn_factor
    if kind == "yarn":
        found *= 1 + 0.1 * math.log(factor)
    return found


@pytest.mark.parametrize(
    ("kind", "factor", "log_multiplier", "attn_factor", "deepseek2"),
    [
        ("yarn", 32.0, 0.0, 1.0, False),
        ("yarn", 16.0, 1.0, 1.0, False),
        ("yarn", 37.5, 0.707, 1.0, False),
        ("yarn", 3.7, 0.5, 1.13, False),
        ("yarn", 0.75, 0.0, 1.0, False),
        ("yarn", 40.0, 1.0, 1.0, True),
        ("yarn", 40.0, 0.707, 0.9, True),
        ("yarn", 40.0, 0.0, 1.0, True),
        ("longrope", 1.0, 0.0, 1.19, False),
        ("longrope", 2.5, 0.0, 1.19, False),
        ("linear", 8.0, 0.7, 1.0, False),
        ("none", 8.0, 0.0, 1.0, False),
    ],
)
def test_keys_of_a_context_extension(kind, factor, log_multiplier, attn_factor, deepseek2):
    plain = RopeConfig(64, base=150_000.0, interleaved=True)
    config = plain.extended(
        kind,
        factor,
        original_context=513,
        attn_factor=attn_factor,
        log_multiplier=log_multiplier,
        mscale=log_multiplier if deepseek2 and log_multiplier else 1.0,
        beta_fast=30.0,
        beta_slow=1.5,
    )
    expected = llama_cpp_magnitude(kind, factor, log_multiplier, attn_factor, deepseek2)
    assert config.magnitude == pytest.approx(expected, rel=1e-14)
    assert config.scale == (1.0 if kind == "none" else factor)
    assert config.yarn == (Yarn(513, 30.0, 1.5) if kind == "yarn" else None)
    assert (config.width, config.base, config.interleaved) == (64, 150_000.0, True)
    assert hash(config) == hash(dataclasses.replace(config))
    assert config.extended("none") == plain


def test_keys_with_neutral_values_change_nothing():
    plain = RopeConfig(48, base=1e6, factors=tuple(np.linspace(1, 8, 24).tolist()))
    for kind in ("none", "linear", "longrope"):
        assert plain.extended(kind) == plain.extended(kind, 0.0) == plain.extended(kind, 1.0)
        assert plain.extended(kind) == plain
    assert plain.extended("none", 7.5) == plain
    yarn = plain.extended("yarn", 0.0, original_context=4096)
    assert yarn == plain.extended("yarn", 1.0, original_context=4096)
    np.testing.assert_array_equal(yarn.turns(), plain.turns())
    assert yarn.magnitude == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(kind="dynamic"), "rope scaling 'dynamic' is not supported"),
        (dict(kind="linear", factor=-2.0), "got 10000.0 and -2.0"),
        (dict(kind="yarn", factor=float("nan"), original_context=64), "got 10000.0 and nan"),
        (dict(kind="yarn", factor=4.0), "the original context of YaRN must be positive, got 0"),
        (
            dict(kind="longrope", attn_factor=-1.5),
            "magnitude must be positive and finite, got -1.5",
        ),
        (
            dict(kind="yarn", factor=4.0, original_context=64, beta_fast=0.5),
            "got beta_slow 1.0 and beta_fast 0.5",
        ),
    ],
)
def test_impossible_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RopeConfig(64).extended(**keys)


@pytest.mark.parametrize("log_multiplier", [0.0, 0.707, 1.0])
@pytest.mark.parametrize("factor", [1.0, 3.7, 40.0])
def test_the_score_scale_of_latent_attention(factor, log_multiplier):
    """In llama.cpp it is mscale**2 / sqrt(H), and mscale is made of the context's factor."""
    multipliers = dict(log_multiplier=log_multiplier, mscale=log_multiplier or 1.0)
    config = RopeConfig(64).extended("yarn", factor, original_context=4096, **multipliers)
    of_context = mscale(factor, multipliers["mscale"]) / mscale(factor, log_multiplier)
    of_context /= 1 + 0.1 * math.log(factor)
    original = of_context * (1 + 0.1 * math.log(factor))
    expected = original * (1 + 0.1 * log_multiplier * math.log(factor))
    found = config.magnitude * yarn_magnitude(factor, log_multiplier)
    assert found == pytest.approx(expected, rel=1e-14)


def test_the_context_chooses_the_factors_of_longrope():
    short, long = (1.0, 1.5), (2.0, 4.5)
    for context, expected in [(255, short), (256, short), (257, long), (131_072, long)]:
        chosen = longrope_factors(short, long, context=context, original_context=256)
        assert chosen == expected


def sector_positions(pair, sections, interleaved, position):
    """The position that ggml's M-RoPE takes for a pair of a text token."""
    time, height, width, _ = sections
    of_text = dict(time=position, height=position, width=position, extra=0)
    sector = pair % sum(sections)
    if interleaved:
        lengths = (time, height, width)
        inside = sector < 3 * lengths[sector % 3]
        return of_text[("time", "height", "width")[sector % 3] if inside else "extra"]
    ends = np.cumsum(sections[:3])
    return of_text[("time", "height", "width", "extra")[np.searchsorted(ends, sector, "right")]]


@pytest.mark.parametrize(
    ("width", "sections", "interleaved", "still"),
    [
        (128, (16, 24, 24, 0), False, []),
        (64, (8, 12, 12, 0), False, []),
        (64, (11, 11, 10, 0), True, []),
        (16, (3, 3, 2, 0), True, []),
        # ggml counts what three equal sections leave over to the fourth, which has no positions.
        # Transformers, and so the training, turns these pairs by the first.
        (128, (24, 20, 20, 0), True, [61, 62]),
        (64, (12, 10, 10, 0), True, [31]),
    ],
)
def test_sections_of_text_are_neox(width, sections, interleaved, still):
    """M-RoPE has a position for each section of pairs. A text token has the same in all."""
    config = RopeConfig(width, base=5e6)
    positions = np.array([[0, 1, 2, 77, 599, 600], [601, 5_000, 65_536, 99_999, 100_000, 10**6]])
    taken = np.stack(
        [
            np.vectorize(lambda p, pair=pair: sector_positions(pair, sections, interleaved, p))(
                positions
            )
            for pair in range(width // 2)
        ],
        axis=-1,
    )
    exact = taken * config.base ** (-np.arange(0, width, 2) / width)
    turning = [pair for pair in range(width // 2) if pair not in still]
    assert not taken[..., still].any()
    cos, sin = rope_table(positions.astype(np.int32), config)
    error = 2 * np.pi * 2.0**-33 * positions[..., None] + 3 * np.pi * 2.0**-24 + 2.0**-23
    assert (np.abs(cos - np.cos(exact)) <= error)[..., turning].all()
    assert (np.abs(sin - np.sin(exact)) <= error)[..., turning].all()


#: Ends of steps, and above 2**24 a position that float32 would round into the next step.
TEMPERATURE_POSITIONS = [0, 1, 63, 64, 128, 129, 600, 5_000, 8_190, 8_191, 8_192, 16_383, 100_000]
TEMPERATURE_POSITIONS += [10**6, 8_192 * 2_049 - 1, 8_192 * 2_049, 2**31 - 1]


@pytest.mark.parametrize(
    ("scale", "floor_scale", "offset"),
    [(0.1, 8_192, 1), (0.1, 8_192, 0), (0.1, 64, 0), (0.37, 129, 0), (2.0, 1, 1), (0.0, 7, 0)],
)
def test_attention_temperature(scale, floor_scale, offset):
    positions = TEMPERATURE_POSITIONS
    exact = [[math.log((p + offset) // floor_scale + 1) * scale + 1 for p in positions]]
    found = jax.jit(attention_temperature, static_argnums=(1, 2, 3))(
        jnp.array([positions], jnp.int32), scale, floor_scale, offset
    )
    assert found.dtype == jnp.float32 and found.shape == (1, len(positions))
    np.testing.assert_allclose(found, exact, rtol=2.0**-21, atol=0)


def test_attention_temperature_is_one_in_the_first_step():
    positions = np.arange(129, dtype=np.int32)[None]
    np.testing.assert_array_equal(attention_temperature(positions, 0.37, 129), np.ones((1, 129)))


@pytest.mark.parametrize(
    ("scale", "floor_scale"), [(0.1, 0), (0.1, -3), (math.nan, 64), (math.inf, 64)]
)
def test_impossible_temperatures_are_refused(scale, floor_scale):
    with pytest.raises(ValueError, match=f"{floor_scale} and {scale}"):
        attention_temperature(np.zeros((1, 2), np.int32), scale, floor_scale)
