"""Mixtures of experts against float64, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.nn import Experts, ScalarGate, mixture, route
from rocmforge_jax.quant import QParam, QTensor

pytestmark = pytest.mark.core

E, D, F = 6, 32, 64


def test_route_takes_the_likeliest_of_a_softmax_over_all(normal, distance):
    logits = normal(5, E)
    exact = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(axis=-1, keepdims=True)
    best = np.argsort(-exact, axis=-1)[:, :2]
    chosen = np.take_along_axis(exact, best, axis=-1)
    for renormalize, truth in ((False, chosen), (True, chosen / chosen.sum(axis=-1, keepdims=True))):
        weights, experts = route(jnp.asarray(logits), 2, renormalize=renormalize)
        np.testing.assert_array_equal(experts, best)
        assert weights.dtype == jnp.float32 and distance(weights, truth) < 1e-6


def experts(values, quantised):
    """values: [E, out, in] -> (Experts, what it holds in float64 [E, in, out])."""
    module = Experts(E, values.shape[2], values.shape[1], rngs=nnx.Rngs(0))
    assert module.kernel.shape == (E, values.shape[2], values.shape[1])
    if not quantised:
        module.kernel = nnx.Param(jnp.asarray(values.swapaxes(1, 2)))
        return module, np.float64(values).swapaxes(1, 2)
    packed = formats.quantize(values.reshape(-1, values.shape[2]), "Q8_0").reshape(E, values.shape[1], -1)
    module.kernel = QParam(QTensor.from_bytes(packed, "Q8_0", transposed=True))
    return module, np.float64(formats.dequantize(packed, "Q8_0")).swapaxes(1, 2)


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
def test_a_mixture_is_the_weighted_sum_of_its_experts(tokens, quantised, normal, distance):
    """Up to three tokens of two experts each go pair by pair, more go expert by expert."""
    parts = [experts(normal(E, *shape, seed=i) / np.float32(6), quantised) for i, shape in enumerate(((F, D), (F, D), (D, F)))]
    (gate, gate64), (up, up64), (down, down64) = parts
    x, logits = normal(tokens, D, seed=5), jnp.asarray(normal(tokens, E, seed=6))
    weights, chosen = route(logits, 2, renormalize=True)
    truth = np.zeros((tokens, D))
    for t in range(tokens):
        for weight, e in zip(np.float64(weights[t]), np.asarray(chosen[t])):
            linear = x[t] @ gate64[e]
            truth[t] += weight * (linear / (1 + np.exp(-linear)) * (x[t] @ up64[e]) @ down64[e])
    assert distance(jax.jit(mixture)(jnp.asarray(x), weights, chosen, gate, up, down), truth) < 1e-6


def test_a_scalar_gate_is_one_sigmoid_a_token(normal, distance):
    gate = ScalarGate(D, rngs=nnx.Rngs(0))
    x = normal(2, 3, D)
    truth = 1 / (1 + np.exp(-np.float64(x) @ np.float64(gate.kernel.get_value())))
    assert distance(gate(jnp.asarray(x)), truth[..., None]) < 1e-6
