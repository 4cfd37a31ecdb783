"""The choice of experts against float64, and where numbers are equal or none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import router
from pallas_kernels.router import Routing
from pallas_kernels.router.blocks import BLOCKS
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton
from tests.routed import ROUTINGS, routed

pytestmark = pytest.mark.core


@functools.partial(jax.jit, static_argnames="routing")
def _route(x, kernel, norm, routing, bias=None, selection_bias=None):
    biases = dict(bias_E=bias, selection_bias_E=selection_bias)
    return router.route(x, kernel, norm, routing, **biases, epsilon=1e-5, target=TARGET)


def _softmax(used, renormalize=True):
    return Routing(used, "softmax", renormalize)


# Fewer experts than a program has, and more; inputs that fill no share, one, and several; one
# token, and more than a program has.
@pytest.mark.parametrize(
    ("tokens", "inputs", "experts", "used"),
    [
        (1, 2048, 128, 8),
        (3, 96, 4, 2),
        (2, 1000, 60, 4),
        (1, 512, 257, 9),
        (16, 70, 8, 1),
        (33, 150, 40, 4),
    ],
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


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("experts", [37, 128])
def test_every_way_to_choose(name, experts, normal, distance):
    """With a bias of the router: its logits decide, not the products alone."""
    routing, selects = ROUTINGS[name]
    x, kernel = 3 * normal(4, 1000), normal(1000, experts) / np.float32(1000**0.5)
    norm, bias = 1 + 0.1 * normal(1000), normal(experts, seed=1)
    selection_bias = normal(experts, seed=2) / np.float32(4) if selects else None
    weights, ids = _route(x, kernel, norm, routing, bias, selection_bias)
    wide = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5) * norm
    truth, best = routed(wide @ np.float64(kernel) + bias, routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    assert distance(weights, truth) < 1e-6


@pytest.mark.parametrize("experts", [256, 300])
def test_every_size_of_programs_chooses_the_same(experts, normal):
    """Those for few and for many tokens and experts, whatever the family of GPU."""
    x, kernel = 3 * normal(2, 1000), normal(1000, experts) / np.float32(1000**0.5)
    norm, selection_bias = 1 + 0.1 * normal(1000), normal(experts, seed=2) / np.float32(4)
    found = [
        router.route(
            x,
            kernel,
            norm,
            Routing(9, "sigmoid", True),
            selection_bias_E=selection_bias,
            epsilon=1e-5,
            target=TARGET,
            blocks=blocks,
        )
        for of_family in BLOCKS.values()
        for *_, blocks in of_family
    ]
    assert len({blocks for of_family in BLOCKS.values() for *_, blocks in of_family}) > 1
    for weights, ids in found[1:]:
        np.testing.assert_array_equal(ids, found[0][1])
        np.testing.assert_allclose(weights, found[0][0], rtol=1e-6)


def test_many_experts_have_a_selection_bias(normal, distance):
    x, kernel, norm = normal(2, 96), normal(96, 257) / np.float32(10), np.ones(96, np.float32)
    selection_bias, routing = normal(257, seed=2), Routing(9, "softmax", True)
    weights, ids = _route(x, kernel, norm, routing, None, selection_bias)
    wide = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5)
    truth, best = routed(wide @ np.float64(kernel), routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    assert distance(weights, truth) < 1e-6


def test_weights_that_are_nearly_zero_are_not_made_larger_than_the_floor_allows():
    """llama.cpp divides by their sum, or by 2^-14 where that is larger."""
    kernel, bias = np.zeros((64, 6), np.float32), np.float32([-20, -21, 3, 4, 5, 6])
    selection_bias = np.float32([9, 8, 0, 0, 0, 0])
    operands = np.ones((1, 64), np.float32), kernel, np.ones(64, np.float32)
    routing = Routing(2, "sigmoid", True)
    weights, ids = _route(*operands, routing, bias, selection_bias)
    truth, best = routed(bias[None], routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    np.testing.assert_allclose(weights, truth, rtol=1e-5)
    assert weights.sum() < 1e-4


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
@pytest.mark.parametrize("name", ROUTINGS)
def test_it_lowers_to_two_launches(name, target):
    of, (routing, selects) = jax.ShapeDtypeStruct, ROUTINGS[name]
    operands = of((3, 2880), jnp.bfloat16), of((2880, 384), jnp.float32), of((2880,), jnp.float32)
    bias = of((384,), jnp.float32)
    biases = dict(bias_E=bias, selection_bias_E=bias) if selects else {}
    run = functools.partial(router.route, routing=routing, epsilon=1e-6, target=target)
    text = lowered_to_triton(target, run, *operands, **biases)
    assert text.count("__gpu$xla.gpu.triton") == 2
