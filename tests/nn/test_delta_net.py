"""A delta net on every backend: what kernels compute is what plain XLA computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from pallas_kernels.delta_rule import DeltaHeads
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.nn import (
    CausalConvolution,
    ConvState,
    DeltaNetSpec,
    LayerNorm,
    MemoryState,
    RMSNorm,
    array_of,
    delta_net,
)
from rocmforge_jax.nn.delta_net import _ALLOWED, _trial_error

pytestmark = pytest.mark.core

HEADS, TAPS, EPSILON = DeltaHeads(2, 6, 16, 32, grouped=True), 4, 1e-3
#: float32 sums in another order.
EXACT = 1e-6


@pytest.fixture
def interpreted():
    """Kernels are there, on a GPU or in Pallas's interpreter."""
    with targets.use(targets.current() or targets.INTERPRET) as target:
        yield target


@pytest.fixture
def net(normal):
    """net(batch, tokens, heads): projections, convolution, dt, a, norm and state."""

    def make(batch=2, tokens=1, heads=HEADS, dtype="float32"):
        N, H, W, C = heads.value_heads, heads.key_width, heads.value_width, heads.channels
        sizes = C, N * W, N, N
        projected = tuple(
            jnp.asarray(normal(batch, tokens, size, seed=i), dtype) for i, size in enumerate(sizes)
        )
        conv, norm = CausalConvolution(TAPS, C, rngs=nnx.Rngs(0)), RMSNorm(W, epsilon=EPSILON)
        norm.scale.set_value(jnp.asarray(1 + normal(W) / 10))
        inputs = jnp.asarray(normal(batch, TAPS - 1, C), dtype)
        state = MemoryState(jnp.asarray(normal(batch, N, H, W)), ConvState(inputs))
        return projected, conv, jnp.asarray(normal(N)), -jnp.exp(normal(N, seed=5)), norm, state

    return make


def computed(backend, operands, lengths=None, heads=HEADS, activations="int16"):
    spec = DeltaNetSpec(heads, EPSILON, Numerics(backend=backend, activations=activations))
    with record() as decisions:
        out, state = delta_net(spec, *operands, lengths)
    return out, state, [(d.operation.name, d.choice.name, d.choice.reason) for d in decisions]


@pytest.mark.parametrize("lengths", [None, [1, 0]])
def test_a_token_in_kernels_is_that_of_plain_xla(lengths, net, distance, interpreted):
    operands = net()
    lengths = None if lengths is None else jnp.int32(lengths)
    expected, held, plain = computed("xla", operands, lengths)
    found, state, chosen = computed("pallas", operands, lengths)
    assert {name for _, name, _ in plain} == {"xla"}
    assert chosen[0][:2] == ("delta net", "pallas")
    assert "gated delta rule, norm and gate in" in chosen[0][2]
    real = slice(1) if lengths is not None else slice(None)
    assert 0 <= distance(array_of(found)[real], np.float64(array_of(expected)[real])) < EXACT
    assert 0 < distance(state.memory_BNHW, np.float64(held.memory_BNHW)) < EXACT
    np.testing.assert_array_equal(state.conv.inputs, held.conv.inputs)


@pytest.mark.parametrize(("batch", "quantised"), [(1, True), (16, True), (17, False)])
def test_few_rows_are_quantised_for_the_product_that_follows(batch, quantised, net, interpreted):
    found, _, _ = computed("pallas", net(batch))
    assert (found.activations_in("int16") is not None) == quantised
    assert found.activations_in("float") is None


def test_its_gradient_is_that_of_plain_xla(net, distance, interpreted):
    projected, *others = net()

    def loss(projected, backend):
        out, state, _ = computed(backend, (projected, *others))
        return (array_of(out) ** 2).sum() + (state.memory_BNHW**2).sum()

    expected, found = (jax.grad(loss)(projected, backend) for backend in ("xla", "pallas"))
    for one, other in zip(found, expected):
        assert distance(one, np.float64(other)) < 10 * EXACT and jnp.abs(other).max() > 0


def test_what_falls_back_says_why(net, interpreted):
    """And a single token's result is plain XLA's to the bit, whatever backend is wanted."""
    wide = DeltaHeads(2, 2, 24, 32, grouped=False)
    projected, conv, dt, a, norm, state = net()
    biased = CausalConvolution(TAPS, HEADS.channels, use_bias=True, rngs=nnx.Rngs(0))
    centred = LayerNorm(HEADS.value_width, epsilon=EPSILON)
    cases = [
        (net(tokens=5), HEADS, "5 tokens, the fused kernel takes one"),
        (net(heads=wide), wide, "keys 24 wide: the kernels know widths of 16, 32"),
        ((projected, biased, dt, a, norm, state), HEADS, "a CausalConvolution with a bias"),
        ((projected, conv, dt, a, centred, state), HEADS, "the norm is a LayerNorm"),
    ]
    for operands, heads, reason in cases:
        out, _, ((_, name, why), *_) = computed("pallas", operands, heads=heads)
        assert name == "xla" and reason in why
        expected, _, _ = computed("xla", operands, heads=heads)
        if operands[0][0].shape[1] == 1:
            np.testing.assert_array_equal(array_of(out), array_of(expected))


def test_several_tokens_in_kernels_are_those_of_plain_xla(net, distance, interpreted):
    operands = net(tokens=75)
    lengths = jnp.int32([75, 33])
    expected, held, plain = computed("xla", operands, lengths)
    found, state, chosen = computed("pallas", operands, lengths)
    assert {name for _, name, _ in plain} == {"xla"}
    assert [name for _, name, _ in chosen[:2]] == ["xla", "pallas"]
    assert "chunks of tokens in three launches" in chosen[1][2]
    assert 0 < distance(array_of(found)[0], np.float64(array_of(expected)[0])) < EXACT
    assert 0 < distance(state.memory_BNHW, np.float64(held.memory_BNHW)) < EXACT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trial_of_a_step_passes(dtype, interpreted):
    """Kernels are tried on a GPU before their first use; wrong numbers would not pass."""
    assert float(_trial_error(HEADS, jnp.dtype(dtype), TAPS - 1)) < _ALLOWED / 2
