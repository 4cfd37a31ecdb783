"""Linear, embedding and feed-forward: values against float64, shapes, and that all of it
stays on the device.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.nn import Embedding, Linear, swiglu, swiglu_mlp
from rocmforge_jax.quant import QParam, QTensor

pytestmark = pytest.mark.core

D, F = 64, 96


@pytest.fixture
def weight(normal):
    """(in, out) -> (a kernel, its values in float64), the kernel an array or packed as Q8_0."""

    def make(inputs, outputs, quantised, seed=0):
        rows = normal(outputs, inputs, seed=seed) / np.float32(8)
        if not quantised:
            return jnp.asarray(rows.T), np.float64(rows.T)
        packed = formats.quantize(rows, "Q8_0")
        return (
            QTensor.from_bytes(packed, "Q8_0", transposed=True),
            np.float64(formats.dequantize(packed, "Q8_0")).T,
        )

    return make


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_linear(quantised, use_bias, weight, normal, distance):
    kernel, dense = weight(D, F, quantised)
    layer = nnx.eval_shape(lambda: Linear(D, F, use_bias=use_bias, rngs=nnx.Rngs(0)))
    assert layer.kernel.shape == (D, F) and (layer.bias is not None) == use_bias
    layer.kernel = QParam(kernel) if quantised else nnx.Param(kernel)
    bias = normal(F, seed=5)
    if use_bias:
        layer.bias = nnx.Param(jnp.asarray(bias))
    for shape in ((D,), (3, D), (2, 1, D)):
        x = jnp.asarray(normal(*shape, seed=3))
        assert distance(layer(x), np.float64(x) @ dense + (bias if use_bias else 0)) < 1e-6
    narrow = x.astype(jnp.bfloat16)
    assert layer(narrow).dtype == jnp.bfloat16 and layer(narrow, jnp.float32).dtype == jnp.float32


def test_a_fresh_linear_keeps_the_variance():
    kernel = Linear(400, 300, rngs=nnx.Rngs(0)).kernel.get_value()
    assert float(kernel.std()) == pytest.approx(400**-0.5, rel=0.02)


@pytest.mark.parametrize("quantised", [False, True])
def test_embedding_looks_up_and_attends_with_one_table(quantised, weight, normal, distance):
    table, dense = weight(D, 50, quantised)
    layer = nnx.eval_shape(lambda: Embedding(50, D, rngs=nnx.Rngs(0)))
    layer.embedding = QParam(table.T) if quantised else nnx.Param(table.T)
    ids = np.array([[0, 49, 7], [7, 7, 1]], np.int32)
    np.testing.assert_array_equal(layer(ids), dense.T[ids].astype(np.float32))
    assert layer(ids, jnp.bfloat16).dtype == jnp.bfloat16
    x = jnp.asarray(normal(2, 3, D, seed=3))
    assert distance(layer.attend(x), np.float64(x) @ dense) < 1e-6
    assert layer.attend(x.astype(jnp.bfloat16), jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("quantised", [False, True])
def test_swiglu_is_silu_of_the_gate_times_up(quantised, weight, normal, distance):
    (gate, gate64), (up, up64) = weight(D, F, quantised), weight(D, F, quantised, seed=1)
    down, down64 = weight(F, D, quantised, seed=2)
    x = normal(2, 3, D, seed=3)
    hidden = silu(np.float64(x) @ gate64) * (np.float64(x) @ up64)
    assert distance(jax.jit(swiglu)(x, gate, up), hidden) < 1e-6
    assert distance(jax.jit(swiglu_mlp)(x, gate, up, down), hidden @ down64) < 1e-6
    assert swiglu(jnp.asarray(x, jnp.bfloat16), gate, up).dtype == jnp.bfloat16


def test_swiglu_at_known_values():
    one = jnp.ones((1, 1))
    out = swiglu(jnp.array([[0.0], [1.0], [-1.0], [100.0], [-100.0]]), one, one)
    np.testing.assert_allclose(
        out[:, 0], [0, 0.73105858, 0.26894142, 10000, 0], rtol=1e-6, atol=1e-30
    )


def test_swiglu_is_differentiable_in_dense_weights_and_x(weight, normal):
    (gate, gate64), (up, up64), x = (
        weight(D, F, False),
        weight(D, F, False, seed=1),
        normal(2, D, seed=3),
    )
    by_x, by_gate, by_up = jax.grad(lambda *operands: swiglu(*operands).sum(), argnums=(0, 1, 2))(
        jnp.asarray(x), gate, up
    )
    g, u = np.float64(x) @ gate64, np.float64(x) @ up64
    slope = u / (1 + np.exp(-g)) * (1 + g / (1 + np.exp(g)))
    for actual, truth in (
        (by_x, slope @ gate64.T + silu(g) @ up64.T),
        (by_gate, np.float64(x).T @ slope),
        (by_up, np.float64(x).T @ silu(g)),
    ):
        np.testing.assert_allclose(actual, truth, rtol=1e-4, atol=1e-5)


def test_wrong_shapes_are_refused_with_both():
    x, gate = jnp.zeros((2, D)), jnp.zeros((D, F))
    with pytest.raises(
        ValueError, match=r"swiglu: gate is \[64, 96\], up is \[64, 95\]: they must be equal"
    ):
        swiglu(x, gate, gate[:, 1:])
    with pytest.raises(ValueError, match=r"matmul: x \[2, 64\] @ weight \[63, 96\]"):
        swiglu(x, gate[1:], gate[1:])
    with pytest.raises(ValueError, match=r"matmul: x \[2, 96\] @ weight \[64, 96\]"):
        swiglu_mlp(x, gate, gate, gate)
    with pytest.raises(ValueError, match=r"matmul: x \[2, 63\] @ weight \[64, 96\]"):
        Linear(D, F, rngs=nnx.Rngs(0))(x[:, 1:])


@pytest.mark.parametrize("quantised", [False, True])
def test_the_feed_forward_stays_on_the_device(quantised, weight, normal, optimised):
    """No callback, feed or transfer: in the jaxpr, in the compiled program, and while it runs."""
    gate, up, down = (weight(*shape, quantised)[0] for shape in ((D, F), (D, F), (F, D)))
    x = jnp.asarray(normal(2, D))
    run = jax.jit(swiglu_mlp)
    compiled = run.lower(x, gate, up, down).compile(optimised)
    for text in (str(run.trace(x, gate, up, down).jaxpr), compiled.as_text()):
        assert "dot" in text
        assert not [
            word
            for word in ("callback", "infeed", "outfeed", "send", "recv")
            if word in text.lower()
        ]
    with jax.transfer_guard("disallow"):
        out = compiled(x, gate, up, down)
    assert out.devices() == x.devices()
