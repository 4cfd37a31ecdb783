"""A state space with its convolution, gate and norm: kernels compute what plain XLA computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.nn import (
    CausalConvolution,
    ConvState,
    GroupedRMSNorm,
    LayerNorm,
    MemoryState,
    ScanHeads,
    StateSpaceSpec,
    array_of,
    state_space,
)
from rocmforge_jax.nn.state_space import _ALLOWED, _trial_error

pytestmark = pytest.mark.core

HEADS, TAPS, EPSILON = ScanHeads(6, 2, 32, 16), 4, 1e-3
#: float32 sums in another order.
EXACT = 1e-6


@pytest.fixture
def interpreted():
    """Kernels are there, on a GPU or in Pallas's interpreter."""
    with targets.use(targets.current() or targets.INTERPRET) as target:
        yield target


@pytest.fixture
def block(normal):
    """block(batch, tokens, heads): projections, convolution, dt, a, d, norm and state."""

    def make(batch=2, tokens=1, heads=HEADS, bias=True, has_norm=True):
        N, C = heads.heads, heads.channels
        conv = CausalConvolution(TAPS, C, use_bias=bias, rngs=nnx.Rngs(0))
        if bias:
            conv.bias.set_value(jnp.asarray(normal(C)))
        norm = GroupedRMSNorm(heads.groups, heads.inner, epsilon=EPSILON)
        scale = 1 + normal(heads.inner) / 10
        norm.scale.set_value(jnp.asarray(scale.reshape(heads.groups, -1)))
        memory = normal(batch, N, heads.head_width, heads.state_width)
        state = MemoryState(jnp.asarray(memory), ConvState(jnp.asarray(normal(batch, TAPS - 1, C))))
        vectors = normal(N), -np.exp(normal(N, seed=5)), normal(N, seed=6)
        projected = jnp.asarray(normal(batch, tokens, heads.projected))
        return projected, conv, *map(jnp.asarray, vectors), norm if has_norm else None, state

    return make


def computed(backend, operands, lengths=None, heads=HEADS, activations="int16"):
    spec = StateSpaceSpec(heads, Numerics(backend=backend, activations=activations))
    with record() as decisions:
        out, state = state_space(spec, *operands, lengths)
    return out, state, [(d.operation.name, d.choice.name, d.choice.reason) for d in decisions]


@pytest.mark.parametrize(("bias", "has_norm"), [(True, True), (False, False)])
@pytest.mark.parametrize("lengths", [None, [1, 0]])
def test_a_token_in_kernels_is_that_of_plain_xla(
    lengths, bias, has_norm, block, distance, interpreted
):
    operands = block(bias=bias, has_norm=has_norm)
    lengths = None if lengths is None else jnp.int32(lengths)
    expected, held, plain = computed("xla", operands, lengths)
    found, state, chosen = computed("pallas", operands, lengths)
    assert {name for _, name, _ in plain} == {"xla"}
    assert chosen[0][:2] == ("Mamba 2", "pallas")
    assert "state space, gate and norm in two launches" in chosen[0][2]
    real = slice(1) if lengths is not None else slice(None)
    assert 0 <= distance(array_of(found)[real], np.float64(array_of(expected)[real])) < EXACT
    assert 0 < distance(state.memory_BNHW, np.float64(held.memory_BNHW)) < EXACT
    np.testing.assert_array_equal(state.conv.inputs, held.conv.inputs)


@pytest.mark.parametrize(("batch", "quantised"), [(1, True), (16, True), (17, False)])
def test_few_rows_are_quantised_for_the_product_that_follows(batch, quantised, block, interpreted):
    found, _, _ = computed("pallas", block(batch))
    assert (found.activations_in("int16") is not None) == quantised
    assert found.activations_in("float") is None


@pytest.mark.parametrize(("bias", "has_norm"), [(True, True), (False, False)])
def test_its_gradient_is_that_of_plain_xla(bias, has_norm, block, distance, interpreted):
    projected, *others = block(bias=bias, has_norm=has_norm)

    def loss(projected, backend):
        out, state, _ = computed(backend, (projected, *others))
        return (array_of(out) ** 2).sum() + (state.memory_BNHW**2).sum()

    expected, found = (jax.grad(loss)(projected, backend) for backend in ("xla", "pallas"))
    assert distance(found, np.float64(expected)) < 10 * EXACT and jnp.abs(expected).max() > 0


def test_what_falls_back_says_why(block, interpreted):
    """And a single token's result is plain XLA's to the bit, whatever backend is wanted."""
    wide = ScanHeads(6, 2, 24, 16)
    projected, conv, *vectors, norm, state = block()
    centred = LayerNorm(HEADS.inner, epsilon=EPSILON)

    class Other(CausalConvolution):
        pass

    other = Other(TAPS, HEADS.channels, rngs=nnx.Rngs(0))
    cases = [
        (block(tokens=5), HEADS, "5 tokens, the fused kernels take one"),
        (block(heads=wide), wide, "heads 24 wide: the kernels know widths of 16, 32"),
        ((projected, other, *vectors, norm, state), HEADS, "the convolution is a Other"),
        ((projected, conv, *vectors, centred, state), HEADS, "the norm is a LayerNorm"),
    ]
    for operands, heads, reason in cases:
        out, _, ((_, name, why), *_) = computed("pallas", operands, heads=heads)
        assert name == "xla" and reason in why
        expected, _, _ = computed("xla", operands, heads=heads)
        if operands[0].shape[1] == 1:
            np.testing.assert_array_equal(array_of(out), array_of(expected))


def test_several_tokens_in_kernels_are_those_of_plain_xla(block, distance, interpreted):
    operands = block(tokens=75)
    lengths = jnp.int32([75, 33])
    expected, held, plain = computed("xla", operands, lengths)
    found, state, chosen = computed("pallas", operands, lengths)
    assert {name for _, name, _ in plain} == {"xla"}
    assert [name for _, name, _ in chosen[:2]] == ["xla", "pallas"]
    assert "chunks of tokens in three launches" in chosen[1][2]
    assert 0 < distance(array_of(found)[0], np.float64(array_of(expected)[0])) < EXACT
    assert 0 < distance(state.memory_BNHW, np.float64(held.memory_BNHW)) < EXACT


@pytest.mark.parametrize(("has_bias", "has_norm"), [(True, True), (False, False)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trial_of_a_step_passes(dtype, has_bias, has_norm, interpreted):
    """Kernels are tried on a GPU before their first use; wrong numbers would not pass."""
    error = _trial_error(HEADS, jnp.dtype(dtype), TAPS - 1, has_bias, has_norm)
    assert float(error) < _ALLOWED / 2
