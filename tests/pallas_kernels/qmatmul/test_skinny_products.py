"""Several products and their epilogues in one launch of the skinny GEMM, against float64 NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.qmatmul import Product, Weight, blocks, multiply_skinny
from pallas_kernels.qmatmul.blocks import MatrixTile
from tests.activated import FUNCTIONS, SWIGLU_OAI, activated
from tests.heavy import some
from tests.pallas_kernels.conftest import TARGET
from tests.pallas_kernels.qmatmul.operands import stack_of

pytestmark = pytest.mark.core


LAUNCHES = ("one launch", "a launch for each weight")


@pytest.fixture(autouse=True, params=LAUNCHES)
def launches(request, monkeypatch):
    """Both ways to compute several weights; AMD's GPUs take the second one."""
    monkeypatch.setattr(blocks, "SEVERAL_WEIGHTS", {"": request.param == "one launch"})
    yield
    _multiply.clear_cache()


_multiply = jax.jit(
    functools.partial(multiply_skinny, target=TARGET), static_argnames=("tile", "dtype", "epsilon")
)


def _tile(splits=1, groups=8):
    return MatrixTile(16, groups, warps=4, batch=16, splits=splits)


def _linear(x, values, scale=None, bias=None):
    """Returns x @ values.T * scale + bias, with values rounded to bfloat16."""
    rounded = np.asarray(jnp.asarray(values).astype(jnp.bfloat16)).astype(np.float64)
    y = np.asarray(x).astype(np.float64) @ rounded.T
    y = y if scale is None else y * np.float64(scale)
    return y if bias is None else y + bias


def _check(y, truth):
    # As `FLOAT32` of test_skinny_gemm.py: the order of the sums, and the cut bits of matrix units.
    np.testing.assert_allclose(y, truth, rtol=0, atol=4e-6 * np.abs(truth).max())


@pytest.mark.parametrize(
    ("launches", "splits"),
    some(itertools.product(LAUNCHES, (1, 2)), lambda *case: case != (LAUNCHES[1], 2)),
    indirect=["launches"],
)
@pytest.mark.parametrize("count", [33])
def test_products_of_different_types_share_a_launch(count, splits, matrix, normal):
    """One with a gate, one with a scale, a bias and a residual, and one of fewer groups a tile."""
    (gate, gate_values), (up, up_values) = matrix("Q4_K", 37, 3), matrix("Q6_K", 37, 3)
    (other, other_values), (last, last_values) = matrix("Q8_0", 9, 24), matrix("MXFP4", 50, 24)
    x = jnp.asarray(normal(count, 768), jnp.bfloat16)
    bias, scale, residual = normal(9), np.float32([-1.3]), normal(count, 9)
    products = [
        Product((gate, up), activation=SILU),
        Product((other,), (bias,), residual, scales=(scale,)),
        Product((last,)),
    ]
    first, second, third = _multiply(x, products, dtype=jnp.float32, tile=_tile(splits))
    _check(first, activated(SILU, _linear(x, gate_values), _linear(x, up_values)))
    _check(second, _linear(x, other_values, scale, bias) + residual)
    _check(third, _linear(x, last_values))
    narrow = _multiply(x, products, dtype=jnp.bfloat16, tile=_tile(splits))
    for y, exact in zip(narrow, (first, second, third)):
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("launches", "splits", "name"),
    # Every function, and splits with both kinds of launches.
    some(
        itertools.product(LAUNCHES, (1, 4), FUNCTIONS),
        lambda launches, splits, name: name == "silu" or (launches, splits) == (LAUNCHES[0], 1),
    ),
    indirect=["launches"],
)
def test_a_gate_and_a_linear_part(name, splits, matrix, normal):
    (gate, gate_values), (up, up_values) = matrix("Q4_0", 21, 33), matrix("Q5_1", 21, 33)
    x = jnp.asarray(normal(17, 1056), jnp.bfloat16)
    biases, scales = (normal(21), normal(21, seed=1)), (np.float32([0.7]), np.float32([-0.1]))
    product = Product((gate, up), biases, None, None, scales, FUNCTIONS[name])
    (y,) = _multiply(x, [product], dtype=jnp.float32, tile=_tile(splits))
    linear = map(functools.partial(_linear, x), (gate_values, up_values), scales, biases)
    _check(y, activated(FUNCTIONS[name], *linear))


def test_experts_have_their_own_scales_and_biases(matrix, normal):
    """Rows of x are taken in any order, some twice; rows without an expert are not written."""
    (gate, gate_values), (up, up_values) = (
        stack_of(matrix, name, 4, 19, 5) for name in ("MXFP4", "Q5_0")
    )
    experts, rows = np.int32([3, -1, 0, 3]), np.random.default_rng(0).integers(0, 6, 64)
    x = jnp.asarray(normal(6, 160), jnp.bfloat16)
    biases = normal(4, 19), normal(4, 19, seed=1)
    scales = 1 + normal(4) / 4, None
    product = Product((gate, up), biases, None, experts, scales, SWIGLU_OAI)
    (y,) = _multiply(x, [product], dtype=jnp.float32, rows=jnp.int32(rows))
    assert y.shape == (64, 19)
    for i, e in enumerate(experts):
        if e >= 0:
            at = slice(16 * i, 16 * (i + 1))
            linear = [
                _linear(x[rows[at]], values[e], None if scale is None else scale[e], bias[e])
                for values, scale, bias in zip((gate_values, up_values), scales, biases)
            ]
            _check(y[at], activated(SWIGLU_OAI, *linear))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("count", "inputs", "splits"), [(17, 1056, 1), (33, 768, 2)])
def test_a_norm_before_the_products(count, inputs, splits, dtype, matrix, normal):
    (weight, values), (other, other_values) = matrix("Q4_0", 21, 33), matrix("Q8_0", 9, 33)
    if inputs == 768:
        (weight, values), (other, other_values) = matrix("Q4_K", 21, 3), matrix("Q8_0", 9, 24)
    x, norm = jnp.asarray(3 * normal(count, inputs), dtype), 1 + 0.1 * normal(inputs)
    found = _multiply(
        x,
        [Product((weight,)), Product((other,))],
        dtype=jnp.float32,
        tile=_tile(splits),
        norm=norm,
        epsilon=0.3,
    )
    wide = np.asarray(x).astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 0.3) * norm
    normed = np.asarray(jnp.asarray(np.float32(normed), dtype)).astype(np.float64)
    for y, of in zip(found, (values, other_values)):
        of = np.asarray(jnp.asarray(of).astype(dtype)).astype(np.float64)
        truth = normed @ of.T
        # Few of the inputs are rounded the other way, by 2^-8 of themselves.
        np.testing.assert_allclose(y, truth, rtol=0, atol=1e-3 * np.abs(truth).max())


def test_experts_after_a_norm_and_after_rows_without_one(matrix, normal):
    """The rows of an expert that is not there are not read either: here they are NaN."""
    stack, values = stack_of(matrix, "Q8_0", 3, 19, 5)
    x, experts = np.array(normal(48, 160)), np.int32([2, -1, 0])
    x[16:32] = np.nan
    x = jnp.asarray(x, jnp.bfloat16)
    (y,) = _multiply(x, [Product((stack,), experts=experts)], dtype=jnp.float32)
    for i in (0, 2):
        at = slice(16 * i, 16 * (i + 1))
        _check(y[at], _linear(x[at], values[experts[i]]))


def test_what_does_not_fit(matrix, normal):
    weight, _ = matrix("Q4_0", 7, 1)
    stack = Weight({name: plane[None] for name, plane in weight.planes.items()}, weight.packing)
    x, experts = jnp.zeros((16, 32), jnp.bfloat16), jnp.zeros(1, jnp.int32)
    for products, message in (
        ([Product((weight,)), Product((stack,), experts=experts)], "have experts, or none"),
        ([Product((stack,))], "without experts has planes of 3 axes, got 4"),
        ([Product((weight,), experts=experts)], "with experts has planes of 4 axes, got 3"),
        ([Product((weight, weight))], "2 weights needs an activation function"),
        ([Product((weight,), (normal(8),))], r"shape \[8\]: expected \[7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            _multiply(x, products, dtype=jnp.float32)
