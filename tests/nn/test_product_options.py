"""Products of modules with biases, output scales and activation functions, against float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.nn import GELU, RELU2, Activated, Experts, Gate, Linear, gated, products
from rocmforge_jax.quant import QParam, QTensor
from tests.activated import FUNCTIONS, SWIGLU_OAI, UNGATED, activated
from tests.heavy import some

pytestmark = pytest.mark.core

D = 96
FLOAT32, INT16 = 2e-6, 2e-4


@pytest.fixture(params=["pallas", "cpp", "xla"])
def backend(request):
    """Makes one backend after the other available here."""
    if request.param == "cpp":
        request.getfixturevalue("in_cpp")
    with targets.use(targets.INTERPRET if request.param == "pallas" else None):
        yield request.param


@pytest.fixture
def linear(normal):
    """Makes a packed Linear layer with a bias and an output scale, and its value in float64."""

    def make(outputs, type_name="Q8_0", seed=0, layout="groups", **numerics):
        rows = formats.quantize(normal(outputs, D, seed=seed) / np.float32(8), type_name)
        options = dict(use_bias=True, use_output_scale=True, numerics=Numerics(**numerics))
        layer = nnx.eval_shape(lambda: Linear(D, outputs, **options, rngs=nnx.Rngs(0)))
        layer.kernel = QParam(QTensor.from_bytes(rows, type_name, layout=layout, transposed=True))
        bias, scale = normal(outputs, seed=seed + 1), np.float32([0.3 - seed])
        layer.bias, layer.output_scale = nnx.Param(jnp.asarray(bias)), nnx.Param(jnp.asarray(scale))
        dense = np.float64(formats.dequantize(rows, type_name)).T
        return layer, lambda x: np.float64(x) @ dense * np.float64(scale) + bias

    return make


def decided(call):
    """Returns the result of a call and the first decision."""
    with record() as decisions:
        result = call()
    return result, decisions[0]


def quick_gates(name, backend):
    """The kernels' own tests have every function: one without options and one with them do here."""
    return backend != "pallas" or name in ("silu", "swiglu_oai of 0.9")


@pytest.mark.parametrize(
    ("name", "backend"),
    some(itertools.product(FUNCTIONS, ("pallas", "cpp", "xla")), quick_gates),
    indirect=["backend"],
)
def test_gates(name, backend, linear, normal, distance):
    (gate, g), (up, u), (other, o) = linear(7, "MXFP4"), linear(7, seed=1), linear(5, seed=2)
    x, function = jnp.asarray(normal(2, 1, D)), FUNCTIONS[name]
    run = functools.partial(products, x, [Gate(gate, up, function), other])
    (y, plain), decision = decided(run)
    assert (decision.operation.name, decision.choice.name) == ("products", backend)
    if backend != "xla":
        assert decision.choice.reason.startswith(f"3 products with {function} in one")
    assert distance(y, activated(function, g(x), u(x))) < 2 * INT16
    assert distance(plain, o(x)) < INT16


@pytest.mark.parametrize("name", UNGATED)
def test_one_layer(name, backend, linear, normal, distance):
    """And a residual that is added in the end."""
    (layer, of), function = linear(7, "Q4_0"), UNGATED[name]
    x, residual = jnp.asarray(normal(3, D)), jnp.asarray(normal(3, 7))
    (y,), decision = decided(lambda: products(x, [Activated(layer, function)], residual=residual))
    assert decision.choice.name == backend
    assert distance(y - residual, activated(function, of(x))) < 2 * INT16


def test_gradients_are_those_of_plain_xla(backend, linear, normal, distance):
    x = jnp.asarray(normal(2, D))

    def gradients(backend):
        mode = "float" if backend == "pallas" else "int16"
        make = functools.partial(linear, backend=backend, activations=mode)
        layers = [make(7, seed=seed)[0] for seed in (0, 1)]

        def loss(x, layers):
            first, second = layers
            outputs = products(x, [Gate(first, second, SWIGLU_OAI), Activated(first, RELU2)])
            return sum((y**2).sum() for y in outputs)

        return jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(x, layers))

    found, exact = gradients(backend), gradients("xla")
    assert len(found) == 1 + 2 * 2
    allowed = 5 * FLOAT32 if backend == "pallas" else 10 * INT16
    for one, other in zip(found, exact, strict=True):
        assert distance(one, np.float64(other)) < allowed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_linear_layer_by_itself(dtype, normal, distance):
    """The product before its scale is too large for float16; the result is rounded once."""
    layer = Linear(D, 7, use_bias=True, use_output_scale=True, dtype=dtype, rngs=nnx.Rngs(0))
    layer.output_scale.set_value(jnp.float32([1e-5]))
    x = jnp.asarray(6e4 * normal(2, 3, D).clip(-1, 1), dtype)
    exact = np.float64(x) @ np.float64(layer.kernel.get_value())
    assert np.abs(exact).max() > 65504
    y = layer(x)
    assert y.dtype == dtype
    allowed = {"float32": FLOAT32, "bfloat16": 3e-3, "float16": 5e-4}[dtype]
    assert distance(y, 1e-5 * exact) < allowed


def test_fresh_layers_have_a_scale_of_one_or_none():
    made = dict(rngs=nnx.Rngs(0))
    assert Linear(4, 3, **made).output_scale is None and Experts(5, 4, 3, **made).bias is None
    layer = Linear(4, 3, use_output_scale=True, **made)
    stack = Experts(5, 4, 3, use_bias=True, use_output_scale=True, **made)
    assert layer.output_scale.get_value().tolist() == [1.0]
    assert stack.output_scale.get_value().tolist() == [1.0] * 5
    assert stack.bias.shape == (5, 3) and Experts(5, 4, 3, **made).output_scale is None
    layer = Linear(4, 3, **made)
    layer.output_scale = nnx.Param(jnp.float32([2]))
    np.testing.assert_array_equal(layer(jnp.ones(4)), 2 * (jnp.ones(4) @ layer.kernel.get_value()))


@pytest.mark.parametrize("expert", [0, 3])
def test_an_expert_has_its_own_bias_and_scale(expert, normal, distance):
    stack = Experts(4, D, 7, use_bias=True, use_output_scale=True, rngs=nnx.Rngs(0))
    bias, scale, x = normal(4, 7), normal(4, seed=1), normal(3, D)
    stack.bias.set_value(jnp.asarray(bias))
    stack.output_scale.set_value(jnp.asarray(scale))
    y = jax.jit(lambda e: stack(jnp.asarray(x), e))(expert)
    dense = np.float64(stack.kernel.get_value()[expert])
    assert distance(y, np.float64(x) @ dense * np.float64(scale[expert]) + bias[expert]) < FLOAT32


def test_gated_is_computed_in_float32(normal):
    gate, up = (jnp.asarray(normal(40, seed=seed), jnp.bfloat16) for seed in (0, 1))
    y = gated(gate, up, GELU)
    truth = activated(GELU, np.float64(gate), np.float64(up))
    np.testing.assert_array_equal(y, jnp.asarray(truth, jnp.bfloat16))
    np.testing.assert_array_equal(
        gated(gate, activation=RELU2),
        jnp.asarray(activated(RELU2, np.float64(gate)), jnp.bfloat16),
    )


def test_a_function_that_needs_a_gate_has_one(backend, linear, normal):
    with pytest.raises(ValueError, match="swiglu_oai needs"):
        products(jnp.asarray(normal(2, D)), [Activated(linear(7)[0], SWIGLU_OAI)])
