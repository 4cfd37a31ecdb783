"""The plain choice of experts against the kernels and by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.router import Routing, reference, route
from tests.pallas_kernels.conftest import TARGET

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
