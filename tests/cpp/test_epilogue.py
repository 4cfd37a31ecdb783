"""What follows the products in C++, with every set of instructions that this processor has."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import GELU, SILU
from pallas_kernels.qmatmul import Product
from rocmforge_jax.cpp import products
from tests.activated import FUNCTIONS, SWIGLU_OAI, UNGATED, activated
from tests.cpp.conftest import NEEDS_CPP
from tests.cpp.test_products import ERRORS, drawn, made

pytestmark = [NEEDS_CPP, pytest.mark.usefixtures("library")]


@pytest.mark.parametrize("count", [3, 21])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gate_and_a_linear_part(name, count, instructions, distance):
    """Each with its own scale and bias; an output that is added to."""
    gate, up = made("Q4_0", 70, 512), made("Q5_1", 70, 512, 1)
    x, residual = drawn(3, count, 512), drawn(6, count, 70)
    biases, scales = (drawn(4, 70), drawn(5, 70)), (np.float32([0.7]), np.float32([-1.3]))
    product = Product(
        (gate[0], up[0]),
        tuple(map(jnp.asarray, biases)),
        jnp.asarray(residual),
        scales=tuple(map(jnp.asarray, scales)),
        activation=FUNCTIONS[name],
    )
    (y,) = products.multiply(jnp.asarray(x), [product], mode="int16")
    linear = [
        np.float64(x) @ values.T * np.float64(scale) + bias
        for (_, values), scale, bias in zip((gate, up), scales, biases)
    ]
    truth = activated(FUNCTIONS[name], *linear)
    assert distance(np.asarray(y) - residual, truth) < 2 * ERRORS["int16"]


@pytest.mark.parametrize("name", [None, *UNGATED])
def test_one_weight(name, instructions, distance):
    """Beside others of the same call, with other functions."""
    weight, values = made("Q8_0", 37, 256)
    x, bias, scale = drawn(1, 2, 256), drawn(2, 37), np.float32([1.7])
    function = UNGATED.get(name)
    wanted = [
        Product((weight,), activation=GELU),
        Product((weight,), (jnp.asarray(bias),), None, None, (jnp.asarray(scale),), function),
        Product((weight, weight), (None, jnp.asarray(bias)), activation=SWIGLU_OAI),
    ]
    outputs = products.multiply(jnp.asarray(x), wanted, mode="int16")
    linear = np.float64(x) @ values.T
    biased = linear * np.float64(scale) + bias
    truths = [
        activated(GELU, linear),
        biased if function is None else activated(function, biased),
        activated(SWIGLU_OAI, linear, linear + bias),
    ]
    for y, truth in zip(outputs, truths, strict=True):
        assert distance(y, truth) < 2 * ERRORS["int16"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_number_stays_none(name, instructions):
    weight, _ = made("Q4_0", 37, 1280)
    x = drawn(8, 2, 1280)
    x[1, 1000] = np.nan
    product = Product((weight, weight), activation=FUNCTIONS[name])
    (y,) = products.multiply(jnp.asarray(x), [product], mode="int16")
    assert np.isnan(y[1]).all() and not np.isnan(y[0]).any()


WRONG = {
    "2 weights needs an activation": lambda w, ones: Product((w, w)),
    "swiglu_oai needs 2 weights": lambda w, ones: Product((w,), activation=SWIGLU_OAI),
    "2 weights has 1 biases": lambda w, ones: Product((w, w), (ones,), activation=SILU),
    r"scales has shape \[8\]: expected \[1\]": lambda w, ones: Product((w,), scales=(ones,)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit(message):
    product = WRONG[message](made("Q4_0", 8, 64)[0], jnp.ones(8))
    with pytest.raises(ValueError, match=message):
        products.multiply(jnp.ones((1, 64)), [product], mode="int16")
