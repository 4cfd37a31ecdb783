"""The products in C++, compiled for this processor, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dequantize import reference
from pallas_kernels.native import api, build
from pallas_kernels.qmatmul.api import Product, Weight
from pallas_kernels.samples import random_planes
from rocmforge_jax import formats
from rocmforge_jax.quant import groups
from tests.pallas_kernels.conftest import PACKED_TYPES

ERRORS = {"int16": 1e-4, "int8": 1.2e-2}
pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    assert api.load(build.build(tmp_path_factory.mktemp("native")))


def made(name, rows, inputs, seed=0):
    """A random weight and its values."""
    packing = groups.packing(formats.get(name))
    planes = random_planes(jax.random.key(seed), packing, rows, inputs // 32)
    return Weight(planes, packing), np.asarray(reference.dequantize(planes, packing), np.float64)


@pytest.mark.parametrize("mode", ERRORS)
@pytest.mark.parametrize("name", PACKED_TYPES)
def test_a_product(name, mode):
    """Rows and groups that fill no vector, rows of activations that fill no batch and no slab."""
    for rows, inputs, count in [(37, 1280, 1), (66, 768, 19), (5, 1024, 70)]:
        weight, dense = made(name, rows, inputs)
        x = jax.random.normal(jax.random.key(1), (count, inputs), jnp.float32)
        (y,) = jax.jit(lambda x, w=weight: api.multiply(x, [Product((w,))], mode=mode))(x)
        exact = np.float64(x) @ dense.T
        assert np.linalg.norm(y - exact) < ERRORS[mode] * np.linalg.norm(exact)


def test_what_comes_before_and_after():
    """An RMSNorm, SwiGLU, a bias, a residual; several products of one input."""
    gate, up, other = made("Q4_K", 70, 512), made("Q6_K", 70, 512, 1), made("Q8_0", 33, 512, 2)
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    x, norm, bias, residual = draw(3, 3, 512), draw(4, 512), draw(5, 33), draw(6, 3, 33)
    wanted = [Product((gate[0], up[0])), Product((other[0],), bias, residual)]
    first, second = api.multiply(x, wanted, mode="int16", norm=norm, epsilon=1e-5)
    normed = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5) * np.float64(norm)
    g, u = normed @ gate[1].T, normed @ up[1].T
    np.testing.assert_allclose(first, g / (1 + np.exp(-g)) * u, rtol=0, atol=1e-3 * np.abs(g * u).max())
    exact = normed @ other[1].T + np.float64(bias) + np.float64(residual)
    np.testing.assert_allclose(second, exact, rtol=0, atol=2e-4 * np.abs(exact).max())


def test_what_is_no_number_stays_none():
    weight, _ = made("Q4_0", 8, 64)
    (y,) = api.multiply(jnp.full((1, 64), jnp.nan), [Product((weight,))], mode="int16")
    assert np.isnan(y).all()


def test_a_mode_that_there_is_not():
    with pytest.raises(NotImplementedError, match="float activations; there are int16, int8"):
        api.multiply(jnp.ones((1, 64)), [Product((made("Q4_0", 8, 64)[0],))], mode="float")
