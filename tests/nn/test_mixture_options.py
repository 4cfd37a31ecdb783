"""Mixtures with biases, output scales, other activation functions and routers, against float64.

Each runs in plain XLA, and in Pallas's interpreter pair by pair and expert by expert.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.nn import (
    RELU2,
    SILU,
    Experts,
    Linear,
    RMSNorm,
    Routing,
    choose_experts,
    mixture,
)
from rocmforge_jax.quant import QParam, QTensor
from tests.activated import FUNCTIONS, SWIGLU_OAI, activated
from tests.heavy import some
from tests.routed import GROUPED, ROUTINGS, routed

E, D, F = 6, 64, 96
#: Relative errors: float32 products, products of 15-bit activations, and weights, inputs and hidden
#: units that are rounded to bfloat16.
FLOAT32, INT16, BFLOAT16 = 2e-6, 4e-4, 2e-2


@pytest.fixture
def stack(normal):
    """Makes Experts with a bias and an output scale, and their arrays in float64."""

    def make(inputs, outputs, *, seed, type_name="Q8_0", experts=E, mode="float"):
        options = dict(use_bias=True, use_output_scale=True, numerics=Numerics(activations=mode))
        module = nnx.eval_shape(
            lambda: Experts(experts, inputs, outputs, **options, rngs=nnx.Rngs(0))
        )
        values = normal(experts * outputs, inputs, seed=seed) / np.float32(inputs**0.5)
        packed = formats.quantize(values, type_name)
        packed = packed.reshape(experts, outputs, -1)
        kernel = QTensor.from_bytes(packed, type_name, layout="groups", transposed=True)
        bias = normal(experts, outputs, seed=seed + 10)
        scale = 1 + normal(experts, seed=seed + 20) / np.float32(4)
        module.kernel = QParam(kernel)
        module.bias = nnx.Param(jnp.asarray(bias))
        module.output_scale = nnx.Param(jnp.asarray(scale))
        dense = np.float64(formats.dequantize(packed, type_name)).swapaxes(1, 2)
        return module, (dense, np.float64(scale), np.float64(bias))

    return make


def through(x, e, arrays):
    dense, scale, bias = arrays
    return x @ dense[e] * scale[e] + bias[e]


def truth_of(x, weights, experts, gate, up, down, function=SILU, weights_first=False):
    """The weighted sum, pair by pair; gate: None, arrays, or "fused" where `up` holds the gates."""
    total = np.zeros((len(x), down[0].shape[2]))
    for (t, u), e in np.ndenumerate(np.asarray(experts)):
        weight, row = np.float64(weights[t, u]), np.float64(x[t])
        row = weight * row if weights_first else row
        parts = [through(row, e, of) for of in (gate, up) if isinstance(of, tuple)]
        parts = np.split(parts[0], 2) if gate == "fused" else parts
        y = through(activated(function, *parts), e, down)
        total[t] += y if weights_first else weight * y
    return total


#: tokens and their dtype, by how the mixture goes; two experts each of six.
WAYS = {
    "xla, by pair": (3, "float32"),
    "xla, by expert": (9, "float32"),
    "pallas, by pair": (3, "float32"),
    "pallas, together": (9, "float32"),
    "pallas, by expert": (23, "bfloat16"),
}


def _run(way, normal, call):
    """Returns x, the weights, the experts, call's result and the reason of its choice."""
    tokens, dtype = WAYS[way]
    x = jnp.asarray(normal(tokens, D, seed=5), dtype)
    weights, experts = routed(normal(tokens, E, seed=6), Routing(2, "softmax", True))
    operands = x, jnp.asarray(weights, jnp.float32), jnp.asarray(experts, jnp.int32)
    on = targets.use(targets.INTERPRET) if way.startswith("pallas") else targets.use(None)
    with on, record() as decisions:
        y = jax.jit(lambda *of: call(*of))(*operands)
    first = next(d for d in decisions if d.operation.name == "experts")
    assert first.choice.name == way.partition(",")[0]
    assert y.dtype == x.dtype
    return operands, y, first.choice.reason, FLOAT32 if dtype == "float32" else BFLOAT16


def quick_gates(name, way):
    """Every function with and without kernels, and every way."""
    return name == "silu" or way.endswith("by pair")


@pytest.mark.parametrize(("name", "way"), some(itertools.product(FUNCTIONS, WAYS), quick_gates))
def test_gated_experts(name, way, stack, normal, distance):
    (gate, g), (up, u), (down, d) = (
        stack(*of, seed=i) for i, of in enumerate(((D, F), (D, F), (F, D)))
    )
    function = FUNCTIONS[name]
    call = functools.partial(mixture, gate=gate, up=up, down=down, activation=function)
    (x, weights, experts), y, reason, allowed = _run(way, normal, call)
    assert distance(y, truth_of(x, weights, experts, g, u, d, function)) < allowed
    if way.startswith("pallas"):
        expected = {
            "pallas, by pair": "two launches for all pairs",
            "pallas, together": "two launches, up to 2 pairs of an expert together",
            "pallas, by expert": "two launches",
        }
        assert expected[way] in reason and f"with {function}, interpret" in reason


@pytest.mark.parametrize("way", WAYS)
def test_experts_without_gates(way, stack, normal, distance):
    (up, u), (down, d) = stack(D, F, seed=1), stack(F, D, seed=2)
    call = functools.partial(mixture, gate=None, up=up, down=down, activation=RELU2)
    (x, weights, experts), y, _, allowed = _run(way, normal, call)
    assert distance(y, truth_of(x, weights, experts, None, u, d, RELU2)) < allowed


@pytest.mark.parametrize("way", WAYS)
def test_one_stack_of_gates_and_linear_parts(way, stack, normal, distance):
    (up, u), (down, d) = stack(D, 2 * F, seed=1), stack(F, D, seed=2)
    call = functools.partial(mixture, gate=None, up=up, down=down, activation=SWIGLU_OAI)
    (x, weights, experts), y, _, allowed = _run(way, normal, call)
    assert distance(y, truth_of(x, weights, experts, "fused", u, d, SWIGLU_OAI)) < allowed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("normed", [True, False])
def test_weights_that_come_first(normed, way, stack, normal, distance):
    (gate, g), (up, u), (down, d) = (
        stack(*of, seed=i) for i, of in enumerate(((D, F), (D, F), (F, D)))
    )
    norm = None
    if normed:
        norm = RMSNorm(D, epsilon=1e-3)
        norm.scale.set_value(jnp.asarray(1 + 0.1 * normal(D)))
    call = functools.partial(mixture, gate=gate, up=up, down=down, norm=norm, weights_first=True)
    (x, weights, experts), y, _, allowed = _run(way, normal, call)
    h = x if norm is None else norm(x)
    assert distance(y, truth_of(h, weights, experts, g, u, d, weights_first=True)) < allowed


@pytest.mark.core
@pytest.mark.parametrize("way", ["pallas, by pair", "pallas, by expert"])
def test_gradients_are_those_of_plain_xla(way, stack, normal):
    stacks = [stack(*of, seed=i)[0] for i, of in enumerate(((D, F), (D, F), (F, D)))]
    tokens, dtype = WAYS[way]
    x = jnp.asarray(normal(tokens, D, seed=5), dtype)
    weights, experts = routed(normal(tokens, E, seed=6), Routing(2, "softmax", True))
    weights, experts = jnp.asarray(weights, jnp.float32), jnp.asarray(experts, jnp.int32)

    def gradients():
        def loss(x, weights, stacks):
            y = mixture(x, weights, experts, *stacks, activation=SWIGLU_OAI)
            return (y.astype(jnp.float32) ** 2).sum()

        return jax.tree.leaves(nnx.grad(loss, argnums=(0, 1, 2))(x, weights, stacks))

    expected = gradients()
    with targets.use(targets.INTERPRET):
        found = gradients()
    # x, the weights, and of three stacks a bias and a scale.
    assert len(found) == 2 + 3 * 2
    for one, other in zip(found, expected, strict=True):
        one, other = np.float32(one), np.float32(other)
        tolerance = 1e-4 if dtype == "float32" else 5e-2
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


@pytest.mark.core
def test_stacks_that_do_not_fit(stack, normal):
    up, wide, down = (stack(*of, seed=1)[0] for of in ((D, F), (D, 2 * F), (F, D)))
    x, weights, experts = jnp.ones((1, D)), jnp.ones((1, 2)), jnp.zeros((1, 2), jnp.int32)
    for gate, up_, shapes in (
        (up, wide, r"\[\[6, 64, 96\], \[6, 64, 192\], \[6, 96, 64\]\]"),
        (wide, wide, r"\[\[6, 64, 192\], \[6, 64, 192\], \[6, 96, 64\]\]"),
        (None, down, r"\[\[6, 96, 64\], \[6, 96, 64\]\]"),
    ):
        with pytest.raises(ValueError, match=shapes):
            mixture(x, weights, experts, gate, up_, down)
    with pytest.raises(ValueError, match="swiglu_oai needs a gate"):
        mixture(x, weights, experts, None, up, down, activation=SWIGLU_OAI)


@pytest.fixture
def router(normal):
    """A norm of width D, and a router with a bias after it."""
    norm, router = RMSNorm(D, epsilon=1e-3), Linear(D, 12, use_bias=True, rngs=nnx.Rngs(3))
    norm.scale.set_value(jnp.asarray(1 + 0.1 * normal(D)))
    router.bias.set_value(jnp.asarray(normal(12)))
    return norm, router


def _logits(x, norm, router):
    h = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + norm.epsilon)
    h = h * np.float64(norm.scale.get_value())
    return h @ np.float64(router.kernel.get_value()) + np.float64(router.bias.get_value())


@pytest.mark.core
@pytest.mark.parametrize("backend", ["xla", "pallas"])
@pytest.mark.parametrize("name", ROUTINGS | GROUPED)
def test_every_way_to_choose_experts(name, backend, router, normal, distance):
    """Kernels choose where experts are in no groups, with the same gradients."""
    routing, selects = (ROUTINGS | GROUPED)[name]
    selection_bias = jnp.asarray(normal(12, seed=2) / np.float32(4)) if selects else None
    x = jnp.asarray(normal(5, D))

    def loss(norm, router, x):
        how = dict(selection_bias_E=selection_bias, norm=norm)
        weights, ids = choose_experts(x, router, routing, **how)
        return (weights**2).sum(), (weights, ids)

    run = nnx.grad(loss, argnums=(0, 1, 2), has_aux=True)
    expected, _ = run(*router, x)
    on = targets.use(targets.INTERPRET if backend == "pallas" else None)
    with on, record() as decisions:
        gradients, (weights, ids) = run(*router, x)
    choice = decisions[0].choice
    if backend == "pallas" and name in GROUPED:
        groups = f"the experts are in {routing.groups} groups"
        assert (choice.name, choice.reason) == ("xla", groups)
    else:
        assert choice.name == backend
        assert backend == "xla" or routing.scoring in choice.reason or "softmax" in name
    truth, best = routed(_logits(x, *router), routing, selection_bias)
    np.testing.assert_array_equal(ids, best)
    assert distance(weights, truth) < 1e-5
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other)


@pytest.mark.core
def test_a_router_with_an_output_scale_is_called(router, normal):
    norm, _ = router
    scaled = Linear(D, 12, use_output_scale=True, rngs=nnx.Rngs(3))
    x = jnp.asarray(normal(2, D))
    with targets.use(targets.INTERPRET), record() as decisions:
        choose_experts(x, scaled, Routing(2, "softmax", True), norm=norm)
    assert decisions[0].choice.name == "xla" and "output scale" in decisions[0].choice.reason


@pytest.mark.core
@pytest.mark.parametrize("backend", ["xla", "pallas"])
def test_a_mixture_as_gpt_oss_has_them(backend, stack, normal, distance):
    """MXFP4 experts 2880 wide, which is 90 groups, with biases; a router with a bias."""
    width, hidden, experts = 2880, 160, 8
    shapes = (width, hidden), (width, hidden), (hidden, width)
    (gate, g), (up, u), (down, d) = (
        stack(*shape, seed=i, type_name="MXFP4", experts=experts, mode="int16")
        for i, shape in enumerate(shapes)
    )
    for module in (gate, up, down):
        module.output_scale = None
    norm, router = (
        RMSNorm(width, epsilon=1e-5),
        Linear(width, experts, use_bias=True, rngs=nnx.Rngs(3)),
    )
    router.bias.set_value(jnp.asarray(normal(experts)))
    routing, x = Routing(4, "softmax_of_chosen", False), jnp.asarray(normal(2, width))

    def layer(x):
        weights, ids = choose_experts(x, router, routing, norm=norm)
        stacks = gate, up, down
        return weights, ids, mixture(x, weights, ids, *stacks, norm=norm, activation=SWIGLU_OAI)

    on = targets.use(targets.INTERPRET if backend == "pallas" else None)
    with on, record() as decisions:
        weights, ids, y = jax.jit(lambda x: layer(x))(x)
    names = [(d.operation.name, d.choice.name) for d in decisions]
    assert names[:1] == [("choice of experts", backend)] and ("experts", backend) in names
    if backend == "pallas":
        assert len(names) == 2 and "with swiglu_oai" in decisions[1].choice.reason
    truth, best = routed(_logits(x, norm, router), routing)
    np.testing.assert_array_equal(ids, best)
    assert distance(weights, truth) < 1e-5
    h = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5)
    g, u, d = ((dense, np.ones(experts), bias) for dense, _, bias in (g, u, d))
    exact = truth_of(h, truth, best, g, u, d, SWIGLU_OAI)
    assert distance(y, exact) < (FLOAT32 if backend == "xla" else INT16)
