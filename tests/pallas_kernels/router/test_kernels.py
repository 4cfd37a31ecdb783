"""The choice of experts against float64, and where numbers are equal or none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import router
from pallas_kernels.router import Routing
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core


@functools.partial(jax.jit, static_argnames="routing")
def _route(x, kernel, norm, routing, bias=None, selection_bias=None):
    biases = dict(bias_E=bias, selection_bias_E=selection_bias)
    return router.route(x, kernel, norm, routing, **biases, epsilon=1e-5, target=TARGET)


def _softmax(used, renormalize=True):
    return Routing(used, "softmax", renormalize)


# Fewer experts than a program has, and more than are compared at once; inputs that fill no share,
# one, and several.
@pytest.mark.parametrize(
    ("tokens", "inputs", "experts", "used"),
    [(1, 2048, 128, 8), (3, 96, 4, 2), (2, 1000, 60, 4), (1, 512, 257, 9), (16, 70, 8, 1)],
)
@pytest.mark.parametrize(("renormalize", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_likeliest_of_a_softmax(
    tokens, inputs, experts, used, renormalize, dtype, normal, distance
):
    x, kernel = (
        jnp.asarray(3 * normal(tokens, inputs), dtype),
        normal(inputs, experts) / np.float32(inputs**0.5),
    )
    norm = 1 + 0.1 * normal(inputs)
    weights, ids = _route(x, kernel, norm, _softmax(used, renormalize))

    wide = np.asarray(x).astype(np.float64)
    logits = (
        wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * norm @ np.float64(kernel)
    )
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    best = np.argsort(-exact, axis=1)[:, :used]
    truth = np.take_along_axis(exact, best, axis=1)
    np.testing.assert_array_equal(ids, best)
    assert (ids.dtype, weights.dtype) == (jnp.int32, jnp.float32)
    assert (
        distance(weights, truth / truth.sum(axis=1, keepdims=True) if renormalize else truth) < 1e-6
    )


def test_equal_ones_come_in_the_order_of_their_ids(normal):
    """Experts e, e + 5 and e + 10 have the same logit."""
    x, kernel, norm = normal(2, 64), normal(64, 5), np.ones(64, np.float32)
    _, first = _route(x, kernel, norm, _softmax(3))
    _, ids = _route(x, np.tile(kernel, 3), norm, _softmax(9))
    np.testing.assert_array_equal(ids, (np.asarray(first)[..., None] + [0, 5, 10]).reshape(2, 9))


def test_no_numbers_choose_experts_that_are_there(normal):
    """An index outside a stack would be read. The weights say what went wrong."""
    x, kernel = normal(2, 64), normal(64, 6)
    x[0], kernel[3, 2] = np.nan, np.nan
    weights, ids = _route(x, kernel, np.ones(64, np.float32), _softmax(4))
    assert np.isnan(weights).all()
    for row in np.asarray(ids):
        assert len(set(row.tolist())) == 4 and row.min() >= 0 and row.max() < 6


@pytest.mark.parametrize("target", GPUS, ids=str)
def test_it_lowers_to_two_launches(target):
    of = jax.ShapeDtypeStruct
    operands = of((3, 2880), jnp.bfloat16), of((2880, 384), jnp.float32), of((2880,), jnp.float32)
    how = dict(routing=_softmax(6, False), epsilon=1e-6, target=target)
    run = functools.partial(router.route, **how)
    assert lowered_to_triton(target, run, *operands).count("__gpu$xla.gpu.triton") == 2
