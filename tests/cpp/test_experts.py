"""Products with the chosen matrices of a stack in C++ against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.activation_functions import SILU, swiglu_oai
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.cpp import products
from rocmforge_jax.nn import Experts, RMSNorm, mixture, through_each
from rocmforge_jax.quant import QParam, QTensor, dequantize
from tests.cpp.conftest import NEEDS_CPP
from tests.cpp.test_products import ERRORS, made
from tests.pallas_kernels.conftest import PACKED_TYPES

SWIGLU_OAI = swiglu_oai()
pytestmark = [NEEDS_CPP, pytest.mark.usefixtures("library")]


def stack_of(name, count, rows, inputs, seed=0):
    """A stack of random matrices, and its values, float64 [E, N, K]."""
    weights, values = zip(*(made(name, rows, inputs, seed + 10 * e) for e in range(count)))
    planes = {key: jnp.stack([w.planes[key] for w in weights]) for key in weights[0].planes}
    return Weight(planes, weights[0].packing), np.stack(values)


def chosen(random, tokens, used, experts):
    """Experts of each token; the first two tokens and half of the others share one of them."""
    ids = random.integers(0, experts, (tokens, used))
    ids[: tokens // 2 + 1, 0] = experts - 1
    return ids.reshape(-1).astype(np.int32)


def exact_product(x, ids, values):
    each = np.repeat(np.float64(x), len(ids) // len(x), axis=0)
    return np.einsum("pk,pnk->pn", each, values[ids])


@pytest.mark.parametrize("mode", ERRORS)
@pytest.mark.parametrize("name", PACKED_TYPES)
def test_a_pair_is_the_product_with_its_expert(name, mode, instructions, normal, distance):
    """Experts of one pair, of a few, of whole tiles, and of more than a slab."""
    random = np.random.default_rng(0)
    for tokens, used, rows, inputs in [(1, 3, 37, 768), (5, 2, 70, 256), (90, 3, 5, 512)]:
        weight, values = stack_of(name, 7, rows, inputs)
        x, ids = normal(tokens, inputs), chosen(random, tokens, used, 7)
        product = Product((weight,), experts=jnp.asarray(ids))
        (y,) = products.multiply(jnp.asarray(x), [product], mode=mode)
        assert distance(y, exact_product(x, ids, values)) < ERRORS[mode], (tokens, rows)


def test_more_pairs_than_are_quantised_at_a_time(normal, distance):
    weight, values = stack_of("Q4_0", 3, 9, 64)
    x, ids = normal(1500, 64), chosen(np.random.default_rng(0), 1500, 2, 3)
    (y,) = products.multiply(
        jnp.asarray(x), [Product((weight,), experts=jnp.asarray(ids))], mode="int16"
    )
    assert distance(y, exact_product(x, ids, values)) < ERRORS["int16"]


@pytest.mark.parametrize("tokens", [1, 5, 41])
def test_norm_scales_biases_and_gates_of_experts(tokens, instructions, normal, distance):
    (gate, of_gate), (up, of_up) = (stack_of("MXFP4", 5, 70, 320, seed) for seed in (0, 1))
    x, ids = normal(tokens, 320), chosen(np.random.default_rng(1), tokens, 4, 5)
    norm, scales, biases = normal(320), normal(2, 5), normal(2, 5, 70)
    product = Product(
        (gate, up),
        tuple(map(jnp.asarray, biases)),
        experts=jnp.asarray(ids),
        scales=tuple(map(jnp.asarray, scales)),
        activation=SWIGLU_OAI,
    )
    (y,) = products.multiply(
        jnp.asarray(x), [product], mode="int16", norm=jnp.asarray(norm), epsilon=1e-5
    )
    x64 = np.float64(x)
    normed = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * np.float64(norm)
    g, u = (
        exact_product(normed, ids, values) * scales[i][ids][:, None] + biases[i][ids]
        for i, values in enumerate((of_gate, of_up))
    )
    g, u = np.minimum(g, SWIGLU_OAI.limit), np.clip(u, -SWIGLU_OAI.limit, SWIGLU_OAI.limit)
    exact = g / (1 + np.exp(-SWIGLU_OAI.alpha * g)) * (u + 1)
    assert distance(y, exact) < 3 * ERRORS["int16"]  # two products multiply


def test_ids_outside_of_the_stack_are_clipped(normal):
    weight, _ = stack_of("Q8_0", 3, 8, 64)
    x = jnp.asarray(normal(4, 64))
    found, expected = (
        products.multiply(x, [Product((weight,), experts=jnp.array(ids))], mode="int16")[0]
        for ids in ([-1, 3, 99, 1], [0, 2, 2, 1])
    )
    np.testing.assert_array_equal(found, expected)


def test_experts_that_do_not_fit_are_refused():
    (weight, _), (flat, _) = stack_of("Q4_0", 3, 8, 64), made("Q4_0", 8, 64)
    ids, x = jnp.zeros(4, jnp.int32), jnp.ones((2, 64))
    one = Product((weight,), experts=ids)
    for wrong, numbers in [
        ([one._replace(experts=jnp.zeros(3, jnp.int32))], r"shape \[3\], x has 2 rows"),
        ([one, Product((flat,))], "alone and without a residual, got 2 products"),
        ([one._replace(residual=jnp.ones((4, 8)))], "alone and without a residual"),
        ([one._replace(weights=(flat,))], r"codes is uint32\[8, 4, 2\]: expected uint32\[8, 8"),
    ]:
        with pytest.raises(ValueError, match=numbers):
            products.multiply(x, wrong, mode="int16")


def layer(name, count, rows, inputs, seed=0, **numerics):
    """An `Experts` layer of random packed matrices."""
    weight, _ = stack_of(name, count, rows, inputs, seed)
    sizes = (count, inputs, rows)
    module = Experts(*sizes, numerics=Numerics(**numerics), rngs=nnx.Rngs(0))
    module.kernel = QParam(QTensor(weight.planes, name, "groups", transposed=True))
    return module


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("gates", ["apart", "fused", "none"])
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_a_mixture_goes_through_cpp(tokens, gates, normal, distance):
    """Its sum and the gradient of its input are plain XLA's."""
    F, D = 96, 64
    up = layer("Q5_0", 6, 2 * F if gates == "fused" else F, D, 1)
    gate, down = layer("Q4_0", 6, F, D, 2) if gates == "apart" else None, layer("Q8_0", 6, D, F, 3)
    norm = RMSNorm(D, epsilon=1e-5)
    ids = chosen(np.random.default_rng(0), tokens, 3, 6).reshape(tokens, 3)
    x, weights = jnp.asarray(normal(tokens, D)), jnp.abs(jnp.asarray(normal(tokens, 3)))

    def loss(x):
        y = mixture(x, weights, jnp.asarray(ids), gate, up, down, norm=norm, activation=SILU)
        return (y**2).sum(), y

    with record() as decisions:
        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    assert [d.choice.name for d in decisions if d.operation.name == "experts"] == ["cpp"]
    for module in (gate, up, down):
        if module is not None:
            module.numerics = Numerics(backend="xla")
    (_, expected), exact_gradient = jax.value_and_grad(loss, has_aux=True)(x)
    assert distance(found, np.float64(expected)) < 4e-4
    assert distance(gradient, np.float64(exact_gradient)) < 4e-4


@pytest.mark.usefixtures("in_cpp")
def test_a_mixture_that_cpp_does_not_know_says_why(normal):
    stacks = [layer("Q4_0", 4, 64, 64, seed, activations="float") for seed in (1, 2, 3)]
    ids, weights = jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1))
    with record() as decisions:
        mixture(jnp.asarray(normal(2, 64)), weights, ids, *stacks)
    (choice,) = [d.choice for d in decisions if d.operation.name == "experts"]
    assert choice.name == "xla" and "int16 or int8, not float" in choice.reason


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (5, 1), (2, 70)])
def test_parts_of_tokens_go_through_their_layers(batch, tokens, normal, distance):
    stack = layer("Q5_0", 7, 40, 96)
    x = jnp.asarray(normal(batch, tokens, 7, 96))
    with record() as decisions:
        found, slope = jax.value_and_grad(lambda x: (through_each(x, stack) ** 2).sum())(x)
        y = through_each(x, stack)
    assert decisions[0].choice.name == "cpp" and "in one call" in decisions[0].choice.reason
    dense = np.float64(dequantize(stack.kernel))
    exact = np.einsum("btei,eio->bteo", np.float64(x), dense)
    assert distance(y, exact) < ERRORS["int16"]
    assert distance(slope, 2 * np.einsum("bteo,eio->btei", exact, dense)) < 2 * ERRORS["int16"]
    assert found == pytest.approx((exact**2).sum(), rel=1e-3)
