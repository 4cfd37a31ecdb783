"""The plain choice of experts against the kernels and by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.router import Routing, reference, route
from tests.pallas_kernels.conftest import TARGET
from tests.routed import GROUPED, ROUTINGS, routed

pytestmark = pytest.mark.core


@pytest.mark.parametrize("renormalize", [True, False])
def test_it_chooses_as_the_kernels(renormalize, normal, distance):
    x, kernel = normal(3, 96), normal(96, 12) / np.float32(10)
    how = dict(routing=Routing(4, "softmax", renormalize), epsilon=1e-5)
    norm = 1 + 0.1 * normal(96)
    weights, ids = jax.jit(functools.partial(reference.route, **how))(x, kernel, norm)
    found, found_ids = jax.jit(functools.partial(route, target=TARGET, **how))(x, kernel, norm)
    np.testing.assert_array_equal(ids, found_ids)
    assert ids.dtype == jnp.int32 and distance(found, np.float64(weights)) < 1e-6


def test_equal_experts_come_in_the_order_of_their_ids():
    weights, ids = reference.choose(jnp.array([[1.0, 2.0, 2.0, 1.0]]), Routing(3, "softmax", True))
    assert ids.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ROUTINGS | GROUPED)
def test_every_way_to_choose(name, normal, distance):
    routing, selects = (ROUTINGS | GROUPED)[name]
    logits, selection_bias = 2 * normal(50, 12), normal(12, seed=2) / np.float32(4)
    selection_bias = selection_bias if selects else None
    weights, ids = jax.jit(reference.choose, static_argnums=1)(logits, routing, selection_bias)
    truth, best = routed(logits, routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    assert (weights.dtype, ids.dtype) == (jnp.float32, jnp.int32)
    assert distance(weights, truth) < 1e-6


def test_scores_that_are_rounded_to_one_keep_the_order_of_their_logits():
    logits = jnp.array([[30.0, 20.0, 40.0, 25.0]])
    weights, ids = reference.choose(logits, Routing(3, "sigmoid", False))
    assert ids.tolist() == [[2, 0, 3]] and weights.tolist() == [[1, 1, 1]]


def test_renormalising_has_a_floor():
    logits, selection_bias = np.float32([[-20, -21, 3, 4]]), np.float32([9, 8, 0, 0])
    routing = Routing(2, "sigmoid", True)
    weights, ids = reference.choose(jnp.asarray(logits), routing, jnp.asarray(selection_bias))
    truth, best = routed(logits, routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    np.testing.assert_allclose(weights, truth, rtol=1e-5)
    assert weights.sum() < 1e-4


def test_a_scale_of_zero_is_none():
    logits = jnp.array([[1.0, 2.0, 4.0, 3.0]])
    with_zero, with_one = (
        reference.choose(logits, Routing(2, "softmax", True, scale=scale))[0] for scale in (0, 1)
    )
    np.testing.assert_array_equal(with_zero, with_one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(scoring="tanh"), "softmax, sigmoid, softmax_of_chosen, sqrt_softplus, got 'tanh'"),
        (dict(used=0), "at least 1 expert, got 0"),
        (dict(groups=2, groups_used=3), "3 groups of experts are used, of 2"),
        (dict(groups=2, groups_used=0), "0 groups of experts are used, of 2"),
    ],
)
def test_a_routing_that_makes_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        Routing(**dict(used=2, scoring="softmax", renormalize=True) | values)


@pytest.mark.parametrize(
    ("used", "groups", "message"),
    [
        (13, 1, "13 experts are used, there are 12"),
        (2, 5, "12 experts in 5 groups"),
        (1, 12, "12 experts in 12 groups: .* at least 2"),
        (5, 3, "5 experts are used, the groups that are used have 4"),
    ],
)
def test_a_routing_that_does_not_fit_the_experts(used, groups, message):
    with pytest.raises(ValueError, match=message):
        reference.choose(jnp.zeros((1, 12)), Routing(used, "softmax", True, groups=groups))


@pytest.mark.parametrize(
    ("kernel", "norm", "used", "message"),
    [
        ((64, 6), (96,), 2, r"x has width 96, the router 64, the norm \[96\]"),
        ((96, 6), (64,), 2, r"x has width 96, the router 96, the norm \[64\]"),
        ((96, 6), (96,), 7, "7 experts are used, there are 6"),
    ],
)
def test_operands_that_do_not_fit(kernel, norm, used, message):
    of = jax.ShapeDtypeStruct
    routing = Routing(used, "softmax", renormalize=True)
    call = functools.partial(route, routing=routing, epsilon=1e-5, target=TARGET)
    operands = of((2, 96), jnp.float32), of(kernel, jnp.float32), of(norm, jnp.float32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call, *operands)


def test_biases_that_do_not_fit():
    of = jax.ShapeDtypeStruct
    how = dict(routing=Routing(2, "sigmoid", True), epsilon=1e-5, target=TARGET)
    operands = of((2, 96), jnp.float32), of((96, 6), jnp.float32), of((96,), jnp.float32)
    for name, words in (("bias_E", "bias"), ("selection_bias_E", "selection bias")):
        with pytest.raises(ValueError, match=rf"the {words} has shape \[5\]: expected \[6\]"):
            jax.eval_shape(
                functools.partial(route, **how), *operands, **{name: of((5,), jnp.float32)}
            )


def test_kernels_know_no_groups():
    of, routing = jax.ShapeDtypeStruct, Routing(2, "sigmoid", True, groups=3)
    call = functools.partial(route, routing=routing, epsilon=1e-5, target=TARGET)
    operands = of((2, 96), jnp.float32), of((96, 6), jnp.float32), of((96,), jnp.float32)
    with pytest.raises(NotImplementedError, match="the experts are in 3 groups"):
        jax.eval_shape(call, *operands)
