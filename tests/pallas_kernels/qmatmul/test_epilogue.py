"""What follows the products: scales, biases, activation functions, against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.qmatmul import Product, Weight, activations, multiply, reference
from tests.activated import FUNCTIONS, SWIGLU_OAI, UNGATED, activated
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton
from tests.pallas_kernels.qmatmul.exact import FLOAT32, numbers
from tests.pallas_kernels.qmatmul.operands import abstract_weight, stack_of

pytestmark = pytest.mark.core

HOW = dict(mode="int16", dtype=jnp.float32, target=TARGET)


def _check(y, linear, function, residual=0.0):
    """Compares with f of the linear parts; the error of those is relative to the largest."""
    truth = linear[0] if function is None else activated(function, *linear)
    scale = np.prod([np.abs(part).max() for part in linear]) + np.abs(truth).max()
    np.testing.assert_allclose(y, truth + residual, rtol=1e-5, atol=4 * FLOAT32 * scale)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gate_and_a_linear_part(name, matrix, normal):
    """Each with its own scale and bias; an output that is added to."""
    (gate, gate_values), (up, up_values) = matrix("Q4_0", 7, 8), matrix("Q5_1", 7, 8)
    x, residual = normal(2, 256), normal(2, 7)
    biases, scales = (normal(7), normal(7, seed=1)), (np.float32([0.7]), np.float32([-1.3]))

    def run(x, planes, biases, residual, scales):
        weights = Weight(planes[0], gate.packing), Weight(planes[1], up.packing)
        product = Product(weights, biases, residual, None, scales, FUNCTIONS[name])
        acts = activations.quantize(x, "int16", target=TARGET)
        return acts, *multiply(x, [product], **HOW), *reference.multiply(x, [product])

    acts, y, plain = jax.jit(run)(x, (gate.planes, up.planes), biases, residual, scales)
    for rows, found in ((numbers(acts), y), (np.float64(x), plain)):
        linear = [
            rows @ np.float64(values).T * np.float64(scale) + bias
            for values, scale, bias in zip((gate_values, up_values), scales, biases)
        ]
        _check(found, linear, FUNCTIONS[name], residual)


@pytest.mark.parametrize("name", [None, *UNGATED])
def test_one_weight(name, matrix, normal):
    weight, values = matrix("Q8_0", 9, 5)
    function, x, bias, scale = UNGATED.get(name), normal(3, 160), normal(9), np.float32([1.7])

    def run(x, planes, bias, scale):
        weights = (Weight(planes, weight.packing),)
        product = Product(weights, (bias,), scales=(scale,), activation=function)
        acts = activations.quantize(x, "int16", target=TARGET)
        return acts, *multiply(x, [product], **HOW)

    acts, y = jax.jit(run)(x, weight.planes, bias, scale)
    _check(y, [numbers(acts) @ np.float64(values).T * 1.7 + bias], function)


@pytest.mark.parametrize("given", ["both", "the gate", "the linear part"])
def test_experts_have_their_own(given, matrix, normal):
    """Scales and biases are chosen like the matrices."""
    (gate, gate_values), (up, up_values) = (
        stack_of(matrix, name, 4, 11, 5) for name in ("MXFP4", "Q5_0")
    )
    x, experts = normal(2, 160), np.array([2, 3, 0, 2, 2, 1], np.int32)
    of_each = given in ("both", "the gate"), given in ("both", "the linear part")
    biases = tuple(normal(4, 11, seed=i) if has else None for i, has in enumerate(of_each))
    scales = tuple(1 + normal(4, seed=i) / 4 if has else None for i, has in enumerate(of_each))

    def run(x, planes, biases, scales):
        weights = Weight(planes[0], gate.packing), Weight(planes[1], up.packing)
        product = Product(weights, biases, None, experts, scales, SWIGLU_OAI)
        acts = activations.quantize(x, "int16", target=TARGET)
        return acts, *multiply(x, [product], **HOW), *reference.multiply(x, [product])

    acts, y, plain = jax.jit(run)(x, (gate.planes, up.planes), biases, scales)
    for rows, found in ((numbers(acts), y), (np.float64(x), plain)):
        linear = []
        for values, scale, bias in zip((gate_values, up_values), scales, biases):
            part = np.stack([np.float64(values[e]) @ rows[p // 3] for p, e in enumerate(experts)])
            part = part if scale is None else part * np.float64(scale)[experts][:, None]
            linear.append(part if bias is None else part + bias[experts])
        _check(found, linear, SWIGLU_OAI)


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_lowers_to_two_launches(name, target):
    of, weights = jax.ShapeDtypeStruct, (abstract_weight("MXFP4", 2880, 2880, 32),) * 2
    biases, scales = (of((32, 2880), jnp.float32),) * 2, (of((32,), jnp.float32),) * 2
    product = Product(weights, biases, None, of((4,), jnp.int32), scales, FUNCTIONS[name])
    how = dict(mode="int16", dtype=jnp.bfloat16, target=target)
    x = of((1, 2880), jnp.bfloat16)
    text = lowered_to_triton(target, lambda x, product: multiply(x, [product], **how), x, product)
    assert text.count("__gpu$xla.gpu.triton") == 2


def _wrong(weight, stack):
    ones, experts = jnp.ones, jnp.zeros(2, jnp.int32)
    pair = dict(activation=SILU)
    return {
        "a product has 3 weights": Product((weight,) * 3, **pair),
        "2 weights needs an activation": Product((weight,) * 2),
        "swiglu_oai needs 2 weights, the product has 1": Product((weight,), activation=SWIGLU_OAI),
        "2 weights has 1 biases": Product((weight,) * 2, (ones(7),), **pair),
        "1 weights has 2 scales": Product((weight,), scales=(ones(1), None)),
        r"biases has shape \[8\]: expected \[7\]": Product((weight,), (ones(8),)),
        r"scales has shape \[\]: expected \[1\]": Product((weight,), scales=(ones(()),)),
        r"biases has shape \[7\]: expected \[3, 7\]": Product((stack,), (ones(7),), None, experts),
        r"scales has shape \[1\]: expected \[3\]": Product(
            (stack,), experts=experts, scales=(ones(1),)
        ),
    }


@pytest.mark.parametrize("message", _wrong(None, None))
def test_what_does_not_fit(message):
    product = _wrong(abstract_weight("Q4_0", 7, 64), abstract_weight("Q4_0", 7, 64, 3))[message]
    x = jax.ShapeDtypeStruct((2, 64), jnp.float32)
    for call in (
        lambda x, product: multiply(x, [product], **HOW),
        lambda x, product: reference.multiply(x, [product]),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call, x, product)
