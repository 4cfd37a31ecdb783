"""QParam: a quantised weight in a Flax NNX module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.quant import QParam, QTensor, dequantize

pytestmark = pytest.mark.core


class Scaled(nnx.Module):
    """y = (x * scale) @ kernel, the kernel quantised."""

    def __init__(self, rows):
        self.scale = nnx.Param(jnp.linspace(0.5, 1.5, 96))
        self.kernel = QParam(QTensor.from_bytes(rows, "Q5_1", transposed=True))

    def __call__(self, x):
        return (x * self.scale.get_value()[None]) @ self.kernel


@pytest.fixture
def rows(packed):
    return packed("Q5_1", 7, 3)[0]


@pytest.fixture
def model(rows):
    return Scaled(rows)


@pytest.fixture
def kernel(packed):
    """The kernel's values, float64 (96, 7)."""
    return np.float64(packed("Q5_1", 7, 3)[1].T)


@pytest.fixture
def x(normal):
    return normal(3, 96)


@pytest.fixture
def truth(x, kernel):
    return (np.float64(x) * np.linspace(0.5, 1.5, 96)) @ kernel


def test_it_multiplies_as_a_flax_kernel(model, x, kernel, distance):
    assert model.kernel.shape == (96, 7)
    for array in (x, jnp.asarray(x)):
        product = array @ model.kernel
        assert isinstance(product, jax.Array)
        assert distance(product, np.float64(x) @ kernel) < 1e-6
    np.testing.assert_array_equal(dequantize(model.kernel), kernel.astype(np.float32))


def test_split_and_merge_keep_it(model, x, truth, distance):
    graphdef, state = nnx.split(model)
    assert isinstance(state["kernel"].get_value(), QTensor)
    assert distance(nnx.merge(graphdef, state)(x), truth) < 1e-6
    assert distance(nnx.clone(model)(x), truth) < 1e-6


def test_its_planes_are_leaves_of_the_state(model):
    leaves = jax.tree.leaves(nnx.split(model)[1])
    assert sorted((leaf.dtype.name, leaf.size) for leaf in leaves) == sorted(
        [("float32", 96), ("float16", 21), ("float16", 21), ("uint32", 21), ("uint8", 336)]
    )


def test_jit_of_the_module_and_of_its_flat_leaves(model, x, truth, distance):
    assert distance(nnx.jit(lambda model, x: model(x))(model, x), truth) < 1e-6
    graphdef, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    run = jax.jit(lambda leaves, x: nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(x))
    assert distance(run(leaves, x), truth) < 1e-6


def test_an_abstract_module_has_its_shape_and_takes_a_real_value(rows, x, truth, distance):
    model = nnx.eval_shape(lambda: Scaled(rows))
    assert model.kernel.shape == (96, 7)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model)))
    model.scale = nnx.Param(jnp.linspace(0.5, 1.5, 96))
    model.kernel = QParam(QTensor.from_bytes(rows, "Q5_1", transposed=True))
    assert distance(model(x), truth) < 1e-6


def test_grad_reaches_the_other_parameters_through_it(model, x, kernel, distance):
    gradient = nnx.grad(lambda model, x: model(x).sum())(model, x)
    assert list(gradient) == ["scale"]
    assert distance(gradient["scale"].get_value(), np.float64(x).sum(0) * kernel.sum(1)) < 1e-6


@pytest.mark.parametrize("as_array", [jnp.asarray, np.asarray])
def test_it_never_becomes_an_array_by_itself(model, as_array):
    with pytest.raises(
        TypeError,
        match=r"a QParam does not become an array by itself: use rocmforge_jax.dequantize\(param\)",
    ):
        as_array(model.kernel)
    assert not hasattr(model.kernel, "__jax_array__")


@pytest.mark.parametrize("weight", [np.zeros((2, 3), np.float32), nnx.Param(jnp.zeros((2, 3)))])
def test_dequantize_refuses_what_is_not_quantised(weight):
    with pytest.raises(
        TypeError, match=f"expected a QTensor or a QParam, got {type(weight).__name__}"
    ):
        dequantize(weight)
