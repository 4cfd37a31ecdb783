"""The plain products against float64 NumPy products with ggml's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.qmatmul import Product, reference
from tests.pallas_kernels.qmatmul.exact import FLOAT32, off
from tests.pallas_kernels.qmatmul.operands import stack_of

pytestmark = pytest.mark.core

_multiply = jax.jit(reference.multiply, static_argnames=("dtype", "epsilon"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "IQ4_XS"])
@pytest.mark.parametrize("rows", [1, 20])
def test_a_product(name, rows, matrix, normal):
    weight, values = matrix(name, 7, 3)
    x = normal(rows, values.shape[1])
    (y,) = _multiply(x, [Product((weight,))])
    assert off(y, x, values) < FLOAT32
    (narrow,) = _multiply(x, [Product((weight,))], dtype=jnp.bfloat16)
    np.testing.assert_array_equal(narrow, y.astype(jnp.bfloat16))


def test_norm_bias_residual_and_swiglu(matrix, normal):
    (first, first_values), (second, second_values) = matrix("Q4_0", 7, 8), matrix("Q5_1", 7, 8)
    x, norm, bias, residual = 5 * normal(2, 256), 1 + 0.1 * normal(256), normal(7), normal(2, 7)
    products = [Product((first,), (bias,), residual), Product((first, second), activation=SILU)]
    both, gated = _multiply(x, products, norm=norm, epsilon=0.1)
    wide = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 0.1) * norm
    assert off(np.float64(both) - bias - residual, wide, first_values) < FLOAT32
    gate, up = (wide @ np.float64(values).T for values in (first_values, second_values))
    truth = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(gated, truth, rtol=1e-5, atol=FLOAT32 * np.abs(gate * up).max())


def test_experts(matrix, normal):
    stack, values = stack_of(matrix, "Q5_0", 4, 9, 5)
    x, experts = normal(2, 160), np.array([2, 3, 0, 2, 2, 1], np.int32)
    (y,) = _multiply(x, [Product((stack,), experts=experts)])
    assert y.shape == (6, 9)
    for p, e in enumerate(experts):
        assert off(y[p : p + 1], x[p // 3 : p // 3 + 1], values[e]) < FLOAT32


def test_x_of_a_narrow_dtype_counts_as_it_is(matrix, normal):
    weight, values = matrix("Q8_0", 5, 2)
    x = jnp.asarray(normal(3, 64), jnp.bfloat16)
    (y,) = jax.jit(functools.partial(reference.multiply, products=[Product((weight,))]))(x)
    assert y.dtype == jnp.float32 and off(y, x, values) < FLOAT32
