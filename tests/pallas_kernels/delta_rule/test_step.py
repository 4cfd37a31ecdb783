"""A step of the gated delta net against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.delta_rule import DeltaHeads, Parameters, RecurrentState, Token, step
from pallas_kernels.delta_rule.blocks import BLOCKS, Blocks, blocks_of
from pallas_kernels.qmatmul.activations import quantize_reference
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: Epsilons so large that it matters which norm has which.
EPSILONS = 0.3, 0.02
HEADS = DeltaHeads(2, 6, 32, 64, grouped=False)
#: One launch, and two with one and with several programs for a head's columns.
ONE, TWO = Blocks(columns=64, threads=64), Blocks(columns=16, threads=64)


@functools.partial(jax.jit, static_argnames=("heads", "blocks", "activations"))
def stepped(token, parameters, state, heads, **how):
    return step(token, parameters, state, heads, epsilons=EPSILONS, target=TARGET, **how)


def made(heads, batch=3, taps=4, dtype=jnp.float32):
    """Random operands, those of all kinds in another size."""
    random = np.random.default_rng([heads.value_heads, batch])

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(random.normal(size=shape), dtype)

    N, H, W, C = heads.value_heads, heads.key_width, heads.value_width, heads.channels
    shapes = (batch, C), (batch, N, W), (batch, N), (batch, N)
    token = Token(*(normal(*shape, dtype=dtype) for shape in shapes))
    parameters = Parameters(normal(taps, C) / 2, normal(N), -jnp.exp(normal(N)), normal(W))
    return (
        token,
        parameters,
        RecurrentState(normal(batch, N, H, W), normal(batch, taps - 1, C, dtype=dtype)),
    )


def truth(token, parameters, state, heads):
    """Outputs, memories and the convolution's inputs, one head after the other."""
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a).astype(np.float64))
    token, parameters, state = wide(token), wide(parameters), wide(state)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    inputs = np.concatenate([state.inputs_BLC, token.qkv_BC[:, None]], axis=1)
    seen = (inputs * parameters.filters_LC).sum(axis=1)
    seen, K, H = seen * sigmoid(seen), heads.key_heads, heads.key_width
    memory, out = state.memory_BNHW.copy(), np.zeros(token.gate_BNW.shape)
    for b, n in np.ndindex(*out.shape[:2]):
        k = n // (heads.value_heads // K) if heads.grouped else n % K
        of_key_head = [seen[b, first + k * H : first + (k + 1) * H] for first in (0, K * H)]
        query, key = (x / np.sqrt(x @ x + EPSILONS[0]) for x in of_key_head)
        value = seen[b, 2 * K * H :].reshape(out.shape[1:])[n]
        rate = np.log1p(np.exp(token.alpha_BN[b, n] + parameters.dt_N[n]))
        held = np.exp(rate * parameters.a_N[n]) * memory[b, n]
        change = sigmoid(token.beta_BN[b, n]) * (value - key @ held)
        memory[b, n] = held + np.outer(key, change)
        read = query @ memory[b, n] / np.sqrt(H)
        gate = token.gate_BNW[b, n]
        normed = read / np.sqrt((read**2).mean() + EPSILONS[1]) * parameters.scale_W
        out[b, n] = normed * gate * sigmoid(gate)
    return out, memory, inputs[:, 1:]


@pytest.mark.parametrize("blocks", [ONE, TWO], ids=["one launch", "two launches"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("sizes", "taps"), [((2, 6, 32, 64), 4), ((3, 3, 16, 16), 3), ((1, 4, 64, 32), 2)]
)
def test_a_step_is_the_definition(sizes, taps, grouped, blocks, distance):
    """With one, three and four value heads for a key head, in both orders."""
    heads = DeltaHeads(*sizes, grouped)
    operands = made(heads, taps=taps)
    out, state = stepped(*operands, heads, blocks=blocks)
    assert out.dtype == jnp.float32
    expected, memory, inputs = truth(*operands, heads)
    assert distance(out, expected) < 1e-6
    assert distance(state.memory_BNHW, memory) < 1e-6
    np.testing.assert_array_equal(state.inputs_BLC, inputs.astype(np.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_inputs_are_computed_in_float32(dtype, distance):
    operands = made(HEADS, dtype=jnp.dtype(dtype))
    out, state = stepped(*operands, HEADS)
    expected, memory, inputs = truth(*operands, HEADS)
    assert out.dtype == state.inputs_BLC.dtype == jnp.dtype(dtype)
    # Rounded once.
    assert distance(out, expected) < {"bfloat16": 2e-3, "float16": 3e-4}[dtype]
    assert distance(state.memory_BNHW, memory) < 1e-6
    np.testing.assert_array_equal(np.float64(state.inputs_BLC), inputs)


@pytest.mark.parametrize("blocks", [ONE, TWO], ids=["one launch", "two launches"])
def test_a_sequence_without_a_token_keeps_its_state(blocks, distance):
    """To the bit, even where the token's operands are no numbers; the others move."""
    token, parameters, state = made(HEADS)
    expected, memory, inputs = truth(token, parameters, state, HEADS)
    token = jax.tree.map(lambda a: a.at[1].set(jnp.nan), token)
    lengths = jnp.int32([1, 0, 1])
    out, after = stepped(token, parameters, state, HEADS, lengths_B=lengths, blocks=blocks)
    for found, before in zip(after, state):
        np.testing.assert_array_equal(found[1], before[1])
    for b in (0, 2):
        assert distance(out[b], expected[b]) < 1e-6
        assert distance(after.memory_BNHW[b], memory[b]) < 1e-6
        np.testing.assert_array_equal(after.inputs_BLC[b], inputs[b].astype(np.float32))


@pytest.mark.parametrize("blocks", [ONE, TWO], ids=["one launch", "two launches"])
@pytest.mark.parametrize("mode", ["int16", "int8", "float"])
def test_the_output_is_quantised_for_the_next_product(mode, blocks):
    operands = made(HEADS, dtype=jnp.bfloat16)
    out, _, found = stepped(*operands, HEADS, activations=mode, blocks=blocks)
    expected = quantize_reference(out.reshape(len(out), -1), mode)
    assert found.mode == mode
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_size_of_programs_gives_the_same():
    operands = made(HEADS)
    of_tables = [blocks for family in BLOCKS.values() for _, blocks in family]
    expected = jax.tree.leaves(stepped(*operands, HEADS, blocks=ONE))
    assert blocks_of(1, TARGET) in of_tables
    for blocks in dict.fromkeys(of_tables):
        leaves = jax.tree.leaves(stepped(*operands, HEADS, blocks=blocks))
        for found, one in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(found, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [
        ("qkv_BC", (3, 511), r"qkv_BC must be \[3, 512\], got \[3, 511\]"),
        ("gate_BNW", (3, 6, 32), r"gate_BNW must be \[3, 6, 64\], got \[3, 6, 32\]"),
        ("beta_BN", (3, 2), r"beta_BN must be \[3, 6\], got \[3, 2\]"),
        ("alpha_BN", (2, 6), r"alpha_BN must be \[3, 6\], got \[2, 6\]"),
        ("filters_LC", (3, 512), r"filters_LC must be \[4, 512\], got \[3, 512\]"),
        ("dt_N", (2,), r"dt_N must be \[6\], got \[2\]"),
        ("a_N", (1,), r"a_N must be \[6\], got \[1\]"),
        ("scale_W", (32,), r"scale_W must be \[64\], got \[32\]"),
        ("memory_BNHW", (3, 6, 64, 32), r"memory_BNHW must be \[3, 6, 32, 64\], got \[3, 6, 64"),
        ("inputs_BLC", (3, 3, 64), r"inputs_BLC must be \[3, 3, 512\], got \[3, 3, 64\]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, shape, numbers):
    operands = [
        part._replace(**{name: jnp.ones(shape)}) if name in part._fields else part
        for part in made(HEADS)
    ]
    with pytest.raises(ValueError, match=numbers):
        step(*operands, HEADS, epsilons=EPSILONS, target=TARGET)


def test_other_operands_that_do_not_fit_are_refused():
    token, parameters, state = made(HEADS)
    with pytest.raises(ValueError, match=r"lengths_B must be \[3\], got \[2\]"):
        stepped(token, parameters, state, HEADS, lengths_B=jnp.ones(2, jnp.int32))
    narrow = state._replace(memory_BNHW=state.memory_BNHW.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="memory_BNHW must be float32, got bfloat16"):
        stepped(token, parameters, narrow, HEADS)
    uneven = DeltaHeads(4, 6, 16, 64, grouped=False)
    with pytest.raises(ValueError, match="6 value heads and 4 key heads"):
        stepped(token, parameters, state, uneven)


@pytest.mark.parametrize(
    ("sizes", "batch", "numbers"),
    [
        ((2, 4, 24, 32), 1, "keys 24 wide.*16, 32, 64, 128, 256"),
        ((2, 4, 32, 512), 1, "values 512 wide.*16, 32, 64, 128, 256"),
        ((2, 32, 128, 128), 4096, r"\[4096, 32, 128, 128\].* 2147483647 elements"),
    ],
)
def test_what_kernels_cannot_do(sizes, batch, numbers):
    heads = DeltaHeads(*sizes, grouped=False)
    operands = jax.eval_shape(functools.partial(_zeros, heads, batch))
    run = functools.partial(step, heads=heads, epsilons=EPSILONS, target=TARGET)
    with pytest.raises(NotImplementedError, match=numbers):
        jax.eval_shape(run, *operands)


def test_narrow_heads_are_not_quantised():
    heads = DeltaHeads(2, 2, 32, 16, grouped=False)
    with pytest.raises(NotImplementedError, match="heads of 16, only multiples of 32"):
        stepped(*made(heads), heads, activations="int16")


def _zeros(heads, batch):
    N, H, W, C = heads.value_heads, heads.key_width, heads.value_width, heads.channels
    shapes = (batch, C), (batch, N, W), (batch, N), (batch, N)
    vectors = [jnp.zeros(shape) for shape in ((4, C), (N,), (N,), (W,))]
    state = jnp.zeros((batch, N, H, W)), jnp.zeros((batch, 3, C))
    return Token(*map(jnp.zeros, shapes)), Parameters(*vectors), RecurrentState(*state)


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize(("blocks", "launches"), [(ONE, 1), (TWO, 2)])
def test_launches(blocks, launches, target):
    """As many as the sizes of programs say, whose outputs share memory with the states."""
    operands = jax.eval_shape(functools.partial(_zeros, HEADS, 2))
    run = functools.partial(
        step, heads=HEADS, epsilons=EPSILONS, activations="int16", target=target, blocks=blocks
    )
    text = lowered_to_triton(target, run, *operands)
    assert text.count("__gpu$xla.gpu.triton") == launches
    assert text.count("output_operand_alias<") == 2
