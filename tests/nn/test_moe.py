"""Mixtures of experts against float64, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import dequantize, formats
from rocmforge_jax.backends import Numerics, pallas, record
from rocmforge_jax.nn import (
    Experts,
    Linear,
    RMSNorm,
    Routing,
    ScalarGate,
    choose_experts,
    mixture,
    route,
)
from rocmforge_jax.quant import QParam, QTensor

pytestmark = pytest.mark.core

E, D, F = 6, 32, 64
TWO = Routing(2, "softmax", renormalize=True)
#: Relative error of a mixture by the mode of its activations: each number goes through two
#: products.
ERRORS = {"float": 1e-6, "int16": 2e-4}


def test_route_takes_the_likeliest_of_a_softmax_over_all(normal, distance):
    logits = normal(5, E)
    exact = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(axis=-1, keepdims=True)
    best = np.argsort(-exact, axis=-1)[:, :2]
    chosen = np.take_along_axis(exact, best, axis=-1)
    for renormalize, truth in (
        (False, chosen),
        (True, chosen / chosen.sum(axis=-1, keepdims=True)),
    ):
        weights, experts = route(jnp.asarray(logits), Routing(2, "softmax", renormalize))
        np.testing.assert_array_equal(experts, best)
        assert weights.dtype == jnp.float32 and distance(weights, truth) < 1e-6


@pytest.fixture
def normed(normal):
    """A norm of width D, and a router after it."""
    norm, router = RMSNorm(D, epsilon=1e-3), Linear(D, E, rngs=nnx.Rngs(3))
    norm.scale.set_value(jnp.asarray(1 + 0.1 * normal(D)))
    return norm, router


def decided(call):
    """Returns the result of a call, and the (operation, backend, reason) of each decision."""
    with record() as decisions:
        result = call()
    return result, [(d.operation.name, d.choice.name, d.choice.reason) for d in decisions]


@pytest.mark.parametrize(
    ("tokens", "backend"), [(1, "pallas"), (17, "pallas"), (64, "pallas"), (65, "xla")]
)
def test_few_tokens_choose_their_experts_in_kernels(tokens, backend, normed, normal):
    """As plain XLA chooses, which `test_route_...` holds to float64.

    And weights and gradients are equal.
    """
    (norm, router), x = normed, jnp.asarray(normal(tokens, D))

    def loss(norm, router, x):
        weights, ids = choose_experts(x, router, TWO, norm=norm)
        return (weights**2).sum(), (weights, ids)

    run = nnx.grad(loss, argnums=(0, 1, 2), has_aux=True)
    gradients, (weights, ids) = run(norm, router, x)
    with targets.use(targets.INTERPRET):
        (found, (weights_there, ids_there)), decisions = decided(lambda: run(norm, router, x))
    assert decisions[0][:2] == ("choice of experts", backend)
    np.testing.assert_array_equal(ids, ids_there)
    np.testing.assert_allclose(weights, weights_there, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        assert np.linalg.norm(one - other) < 1e-4 * np.linalg.norm(other)  # so none may be zero


def test_a_router_that_kernels_do_not_know_is_called(normed, normal):
    """What a user put there, say one that is fine-tuned."""
    (norm, router), x = normed, jnp.asarray(normal(3, D))
    expected = choose_experts(x, router, TWO, norm=norm)
    with targets.use(targets.INTERPRET):
        lora = nnx.LoRA(D, 4, E, base_module=router, rngs=nnx.Rngs(0))
        found = choose_experts(x, lora, TWO, norm=norm)
    np.testing.assert_array_equal(found[1], expected[1])  # its second factor begins with zeros
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


def experts(values, quantised, layout=None, **numerics):
    """values: [E, out, in] -> (Experts, what it holds in float64 [E, in, out])."""
    made = dict(numerics=Numerics(**numerics), rngs=nnx.Rngs(0))
    module = Experts(E, values.shape[2], values.shape[1], **made)
    assert module.kernel.shape == (E, values.shape[2], values.shape[1])
    if not quantised:
        module.kernel = nnx.Param(jnp.asarray(values.swapaxes(1, 2)))
        return module, np.float64(values).swapaxes(1, 2)
    packed = formats.quantize(values.reshape(-1, values.shape[2]), "Q8_0").reshape(
        E, values.shape[1], -1
    )
    module.kernel = QParam(QTensor.from_bytes(packed, "Q8_0", layout=layout, transposed=True))
    return module, np.float64(formats.dequantize(packed, "Q8_0")).swapaxes(1, 2)


@pytest.fixture
def case(normal):
    """(tokens, ...) -> operands of a mixture of two experts each, and its value in float64."""

    def make(tokens, quantised=True, layout=None, **numerics):
        shapes = ((F, D), (F, D), (D, F))
        stacks, dense = zip(
            *(
                experts(normal(E, *shape, seed=i) / np.float32(6), quantised, layout, **numerics)
                for i, shape in enumerate(shapes)
            )
        )
        x, logits = jnp.asarray(normal(tokens, D, seed=5)), jnp.asarray(normal(tokens, E, seed=6))
        weights, chosen = route(logits, TWO)
        return (x, weights, chosen, *stacks), _weighted_sum(np.asarray(x), weights, chosen, *dense)

    return make


def _weighted_sum(x, weights, chosen, gate64, up64, down64):
    truth = np.zeros(x.shape)
    for t in range(len(x)):
        for weight, e in zip(np.float64(weights[t]), np.asarray(chosen[t])):
            linear = x[t] @ gate64[e]
            truth[t] += weight * (linear / (1 + np.exp(-linear)) * (x[t] @ up64[e]) @ down64[e])
    return truth


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
def test_a_mixture_is_the_weighted_sum_of_its_experts(tokens, quantised, case, distance):
    """Up to three tokens of two experts each go pair by pair, more go expert by expert."""
    operands, truth = case(tokens, quantised)
    assert distance(jax.jit(mixture)(*operands), truth) < 1e-6


@pytest.mark.parametrize(("tokens", "mode"), [(1, "float"), (3, "float"), (1, "int16")])
def test_pairs_in_kernels(tokens, mode, case, distance):
    """In the interpreter: all pairs in two launches, which read the stacks where they lie."""
    operands, truth = case(tokens, layout="groups", activations=mode)
    with targets.use(targets.INTERPRET):
        y, decisions = decided(lambda: jax.jit(lambda *of: mixture(*of))(*operands))
    assert decisions == [("experts", "pallas", "two launches for all pairs with silu, interpret")]
    assert distance(y, truth) < ERRORS[mode]


#: Experts of 10 tokens, two each, of six: as they come; all the same two.
TOGETHER = {"mixed": None, "two alone": [5, 0]}


@pytest.mark.parametrize("route", TOGETHER)
def test_pairs_of_one_expert_together(route, case, distance):
    """In the interpreter: a pair gives what it gives alone."""
    (x, weights, chosen, *stacks), _ = case(10, layout="groups", activations="int16")
    if TOGETHER[route] is not None:
        chosen = jnp.broadcast_to(jnp.int32(TOGETHER[route]), chosen.shape)
    with targets.use(targets.INTERPRET):
        run = jax.jit(lambda *of: mixture(*of))
        y, decisions = decided(lambda: run(x, weights, chosen, *stacks))
        alone = [run(*(a[t : t + 1] for a in (x, weights, chosen)), *stacks) for t in range(len(x))]
    reason = "two launches, up to 2 pairs of an expert together, with silu, interpret"
    assert decisions == [("experts", "pallas", reason)]
    assert distance(y, np.concatenate(alone)) < 1e-6


@pytest.mark.parametrize("tokens", [3, 9])
def test_a_mixture_of_what_a_norm_gives(tokens, case, normed, distance):
    (x, *rest), _ = case(tokens, layout="groups", activations="float")
    norm, _ = normed
    expected = mixture(norm(x), *rest)
    assert distance(mixture(x, *rest, norm=norm), expected) < 1e-6
    with targets.use(targets.INTERPRET):
        assert distance(mixture(x, *rest, norm=norm), expected) < ERRORS["float"]


def _rounded(x):
    return np.float64(jnp.asarray(x, jnp.bfloat16))


#: Experts of 23 tokens, two each, of six: as they come; all the same two, the first and the last.
ROUTES = {"mixed": None, "two alone": [0, 5]}


@pytest.mark.parametrize(
    ("route", "kernel"),
    [("mixed", True), ("mixed", False), ("two alone", True), ("two alone", False)],
)
def test_many_pairs_by_expert_in_kernels(route, kernel, case, distance, monkeypatch):
    """In bfloat16, in the interpreter: each expert reads its own tokens, in tiles.

    Pairs are grouped in a kernel or by XLA. Weights and hidden units are rounded to bfloat16.
    """
    if not kernel:
        monkeypatch.setattr("pallas_kernels.router.tiles.MOST_CELLS", 0)
    (x, weights, chosen, *stacks), _ = case(23, layout="groups")
    chosen = (
        chosen
        if ROUTES[route] is None
        else jnp.broadcast_to(jnp.int32(ROUTES[route]), chosen.shape)
    )
    x = x.astype(jnp.bfloat16)
    operands = x, weights, chosen, *stacks
    with targets.use(targets.INTERPRET):
        y, decisions = decided(lambda: jax.jit(lambda *of: mixture(*of))(*operands))
    assert decisions == [
        ("experts", "pallas", "pairs ordered by expert, two launches with silu, interpret")
    ]
    assert y.dtype == jnp.bfloat16
    gate, up, down = (_rounded(dequantize(stack.kernel.get_value())) for stack in stacks)
    truth, x64 = np.zeros(x.shape), np.float64(x)
    for t, u in np.ndindex(chosen.shape):
        e = int(chosen[t, u])
        linear = x64[t] @ gate[e]
        truth[t] += np.float64(weights[t, u]) * (
            _rounded(linear / (1 + np.exp(-linear)) * (x64[t] @ up[e])) @ down[e]
        )
    # The sum is rounded to bfloat16, and a hidden unit may be rounded the other way.
    assert distance(y, truth) < 3e-3


def test_many_pairs_in_float32_keep_it(case, distance):
    """The matrix units would round the weights."""
    operands, truth = case(23, layout="groups", activations="float")
    with targets.use(targets.INTERPRET):
        y, decisions = decided(lambda: jax.jit(lambda *of: mixture(*of))(*operands))
    assert decisions[0][:2] == ("experts", "xla") and "float32" in decisions[0][2]
    assert distance(y, truth) < ERRORS["float"]


@pytest.mark.parametrize(
    ("tokens", "dtype", "tolerance"), [(3, "float32", 1e-4), (23, "bfloat16", 5e-2)]
)
def test_the_gradient_of_pairs_in_kernels(tokens, dtype, tolerance, case):
    (x, weights, *rest), _ = case(tokens, layout="groups", activations="float")
    x = x.astype(dtype)

    def gradient():
        def loss(x, weights):
            return (mixture(x, weights, *rest).astype(jnp.float32) ** 2).sum()

        return jax.grad(loss, argnums=(0, 1))(x, weights)

    expected = gradient()
    with targets.use(targets.INTERPRET):
        found = gradient()
    for one, other in zip(found, expected):
        one, other = np.float32(one), np.float32(other)
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("why", ["addresses", "switched off"])
def test_where_no_kernel_reads_a_stack_each_expert_is_copied_out(why, case, distance, monkeypatch):
    backend = "auto" if why == "addresses" else "xla"
    operands, truth = case(1, layout="groups", activations="float", backend=backend)

    def refuse(planes):
        if planes["codes"].ndim > 3:
            raise NotImplementedError("too large")

    if why == "addresses":
        monkeypatch.setattr(pallas, "check_offsets", refuse)
    with targets.use(targets.INTERPRET):
        y, decisions = decided(lambda: jax.jit(lambda *of: mixture(*of))(*operands))
    assert decisions[0][:2] == ("experts", "xla")
    assert distance(y, truth) < ERRORS["float"]


def test_a_scalar_gate_is_one_sigmoid_a_token(normal, distance):
    gate = ScalarGate(D, rngs=nnx.Rngs(0))
    x = normal(2, 3, D)
    truth = 1 / (1 + np.exp(-np.float64(x) @ np.float64(gate.kernel.get_value())))
    assert distance(gate(jnp.asarray(x)), truth[..., None]) < 1e-6
