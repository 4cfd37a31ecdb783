"""Quantised activations against their reference and against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.qmatmul import activations
from tests.pallas_kernels.conftest import TARGET
from tests.pallas_kernels.qmatmul.exact import ERRORS, integers, numbers

pytestmark = pytest.mark.core


@pytest.mark.parametrize(("normed", "dtype"), [(False, "bfloat16"), (True, "float32")])
@pytest.mark.parametrize("mode", activations.MODES)
def test_quantize_equals_its_reference(mode, normed, dtype, normal, distance):
    """75 groups take ten programs.

    Equal but for numbers that lie between two integers to the last bit of float32: where the
    compiler fuses a multiplication with the addition of a half, such a number is rounded to the
    other side.
    """
    x, settings = (
        jnp.asarray(normal(3, 2400), dtype),
        (dict(norm=1 + 0.1 * normal(2400), epsilon=1e-6) if normed else {}),
    )
    x = x.at[1, 64:96].set(0)
    kernel = jax.jit(functools.partial(activations.quantize, mode=mode, target=TARGET, **settings))(
        x
    )
    plain = jax.jit(functools.partial(activations.quantize_reference, mode=mode, **settings))(x)
    wide = np.asarray(x).astype(np.float64)
    if normed:
        wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * settings["norm"]
    assert distance(numbers(kernel), wide) < ERRORS[mode]
    # The mean square is a sum in another order.
    rounding = 1e-6 if normed else 0
    np.testing.assert_allclose(kernel.scale, plain.scale, rtol=rounding)
    if mode == "float":
        assert np.abs(kernel.words).max() < 2 * activations.FLOATS_UNIT
        np.testing.assert_allclose(kernel.words, plain.words, rtol=rounding)
        np.testing.assert_allclose(kernel.sums, plain.sums, rtol=1e-6, atol=1e-5)
        return
    difference = integers(kernel) - integers(plain)
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < (0.01 if normed else 1e-3)
    for acts in (kernel, plain):
        assert np.abs(integers(acts)).max() == activations.LARGEST[mode]
        np.testing.assert_array_equal(
            acts.sums, np.moveaxis(integers(acts).reshape(3, 75, 2, 16).sum(axis=-1), 1, 2)
        )


@pytest.mark.parametrize("mode", activations.MODES)
def test_bytes_in_turn_are_the_same_bytes(mode, normal):
    """Of floats there are none."""
    x = normal(2, 2400)
    in_turn, plain = (
        jax.jit(functools.partial(activations.quantize, mode=mode, in_turn=turn, target=TARGET))(x)
        for turn in (True, False)
    )
    assert in_turn.in_turn == (mode != "float") and not plain.in_turn
    np.testing.assert_array_equal(in_turn.sums, plain.sums)
    np.testing.assert_array_equal(numbers(in_turn), numbers(plain))
    assert (np.asarray(in_turn.words) != plain.words).any() == in_turn.in_turn


@pytest.mark.parametrize("mode", ["int16", "int8"])
def test_quantized_numbers_are_half_a_step_off_at_most(mode, normal):
    x = normal(2, 320)
    acts = activations.quantize_reference(x, mode)
    off = np.abs(numbers(acts) - x).reshape(2, 10, 32)
    # Beyond half a step by the rounding of x * (1 / step) alone: 1e-7 of the largest number.
    assert (off / np.float64(acts.scale)[..., None]).max() <= 0.5 + 1e-7 * activations.LARGEST[mode]
