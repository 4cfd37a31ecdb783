"""Activation functions against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import ActivationFunction
from tests.activated import FUNCTIONS, SWIGLU_OAI, UNGATED, activated

pytestmark = pytest.mark.core


def _close(y, truth):
    # Of GELU's truth 1 + tanh cancels, so that small numbers have an absolute error.
    np.testing.assert_allclose(y, truth, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_with_a_gate(name, normal):
    gate, up = 5 * normal(7, 33), 5 * normal(7, 33, seed=1)
    y = jax.jit(FUNCTIONS[name])(gate, up)
    assert y.dtype == jnp.float32
    _close(y, activated(FUNCTIONS[name], gate, up))


@pytest.mark.parametrize("name", UNGATED)
def test_without_a_gate(name, normal):
    x = 5 * normal(7, 33)
    _close(FUNCTIONS[name](jnp.asarray(x)), activated(FUNCTIONS[name], x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_far_from_zero(name):
    """Where e^x leaves the range of float32."""
    gate = np.array([-1e6, -200, -50, 0, 50, 200, 1e6], np.float32)
    up = np.array([3, -3, 9, 1, -9, 3, -3], np.float32)
    y = FUNCTIONS[name](jnp.asarray(gate), jnp.asarray(up))
    np.testing.assert_allclose(y, activated(FUNCTIONS[name], gate, up), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("operand", [0, 1])
def test_no_number_stays_none(name, operand):
    operands = np.ones((2, 3), np.float32)
    operands[operand, 1] = np.nan
    y = np.asarray(FUNCTIONS[name](*map(jnp.asarray, operands)))
    np.testing.assert_array_equal(np.isnan(y), [False, True, False])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient(name, normal):
    gate, up = 2 * normal(50), 2 * normal(50, seed=1)
    found = jax.grad(lambda *of: FUNCTIONS[name](*of).sum(), argnums=(0, 1))(gate, up)
    step = 1e-5
    for i, gradient in enumerate(found):
        moved = [np.float64([gate, up])] * 2
        moved = [
            operands + sign * step * (np.arange(2) == i)[:, None]
            for operands, sign in zip(moved, (1, -1))
        ]
        above, below = (activated(FUNCTIONS[name], *operands) for operands in moved)
        np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-4, atol=1e-4)


def test_it_is_a_value():
    """A pytree without leaves, equal by what it computes."""
    assert jax.tree.leaves(FUNCTIONS["gelu"]) == []
    assert SWIGLU_OAI == ActivationFunction("swiglu_oai", 1.702, 7.0) != FUNCTIONS["silu"]
    assert len(set(FUNCTIONS.values())) == len(FUNCTIONS)


def test_what_does_not_exist():
    with pytest.raises(ValueError, match="silu, gelu, relu2, swiglu_oai, got 'tanh'"):
        ActivationFunction("tanh")
    with pytest.raises(ValueError, match="swiglu_oai needs a gate"):
        SWIGLU_OAI(jnp.ones(3))
