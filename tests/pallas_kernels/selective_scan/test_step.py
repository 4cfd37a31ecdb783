"""A step of the selective state space against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.selective_scan import Parameters, RecurrentState, ScanHeads, step
from pallas_kernels.selective_scan.blocks import BLOCKS, Blocks, blocks_of
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: So large that it matters.
EPSILON = 0.3
HEADS = ScanHeads(6, 2, 32, 64)
#: A head in several programs, and channels likewise; and in a single one, in several tiles.
SEVERAL, ONE = Blocks(16, 64, channels=32), Blocks(16, 64, tiles=8, channels=256)


@functools.partial(jax.jit, static_argnames=("heads", "blocks", "activations"))
def stepped(projected, parameters, state, heads, **how):
    return step(projected, parameters, state, heads, epsilon=EPSILON, target=TARGET, **how)


def made(heads, batch=3, taps=4, dtype=jnp.float32, bias=True, norm=True):
    """Random operands, those of all kinds in another size."""
    random = np.random.default_rng([heads.heads, batch])

    def normal(*shape, dtype=jnp.float32):
        return jnp.asarray(random.normal(size=shape), dtype)

    N, C = heads.heads, heads.channels
    parameters = Parameters(
        normal(taps, C) / 2,
        normal(C) if bias else None,
        normal(N),
        -jnp.exp(normal(N)),
        normal(N),
        normal(heads.inner) if norm else None,
    )
    memory = normal(batch, N, heads.head_width, heads.state_width)
    state = RecurrentState(memory, normal(batch, taps - 1, C, dtype=dtype))
    return normal(batch, heads.projected, dtype=dtype), parameters, state


def truth(projected, parameters, state, heads):
    """Outputs, memories and the convolution's inputs, one head after the other."""
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a).astype(np.float64))
    projected, parameters, state = wide(projected), wide(parameters), wide(state)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    N, K, H, W = heads.heads, heads.groups, heads.head_width, heads.state_width
    z, x, dt = np.split(projected, [N * H, projected.shape[1] - N], axis=1)
    inputs = np.concatenate([state.inputs_BLC, x[:, None]], axis=1)
    seen = (inputs * parameters.filters_LC).sum(axis=1)
    seen = seen if parameters.bias_C is None else seen + parameters.bias_C
    x, b, c = np.split(seen * sigmoid(seen), [N * H, N * H + K * W], axis=1)
    dt, memory, out = np.log1p(np.exp(dt + parameters.dt_N)), state.memory_BNHW.copy(), z.copy()
    for i, n in np.ndindex(len(z), N):
        k, of_head = n // (N // K), slice(n * H, n * H + H)
        memory[i, n] *= np.exp(dt[i, n] * parameters.a_N[n])
        memory[i, n] += dt[i, n] * np.outer(x[i, of_head], b[i, k * W : k * W + W])
        read = memory[i, n] @ c[i, k * W : k * W + W] + parameters.d_N[n] * x[i, of_head]
        out[i, of_head] = read * z[i, of_head] * sigmoid(z[i, of_head])
    if parameters.scale_I is not None:
        groups = out.reshape(len(out), K, -1)
        groups = groups / np.sqrt((groups**2).mean(axis=-1, keepdims=True) + EPSILON)
        out = groups.reshape(out.shape) * parameters.scale_I
    return out, memory, inputs[:, 1:]


@pytest.mark.parametrize("blocks", [SEVERAL, ONE], ids=["several programs", "one program"])
@pytest.mark.parametrize(("bias", "norm"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(
    ("sizes", "taps"), [((6, 2, 32, 64), 4), ((3, 3, 16, 16), 3), ((5, 1, 80, 32), 2)]
)
def test_a_step_is_the_definition(sizes, taps, bias, norm, blocks, distance):
    """With three, one and five heads in a group."""
    heads = ScanHeads(*sizes)
    operands = made(heads, taps=taps, bias=bias, norm=norm)
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


def test_a_strong_decay_empties_the_memory(distance):
    """To numbers, whatever the memory held."""
    projected, parameters, state = made(HEADS)
    parameters = parameters._replace(a_N=jnp.full(HEADS.heads, -1e4))
    out, after = stepped(projected, parameters, state, HEADS)
    expected, memory, _ = truth(projected, parameters, state, HEADS)
    assert distance(out, expected) < 1e-6 and distance(after.memory_BNHW, memory) < 1e-6


@pytest.mark.parametrize("blocks", [SEVERAL, ONE], ids=["several programs", "one program"])
def test_a_sequence_without_a_token_keeps_its_state(blocks, distance):
    """To the bit, even where the token's operands are no numbers; the others move."""
    projected, parameters, state = made(HEADS)
    expected, memory, inputs = truth(projected, parameters, state, HEADS)
    projected = projected.at[1].set(jnp.nan)
    lengths = jnp.int32([1, 0, 1])
    out, after = stepped(projected, parameters, state, HEADS, lengths_B=lengths, blocks=blocks)
    for found, before in zip(after, state):
        np.testing.assert_array_equal(found[1], before[1])
    for b in (0, 2):
        assert distance(out[b], expected[b]) < 1e-6
        assert distance(after.memory_BNHW[b], memory[b]) < 1e-6
        np.testing.assert_array_equal(after.inputs_BLC[b], inputs[b].astype(np.float32))


@pytest.mark.parametrize("blocks", [SEVERAL, ONE], ids=["several programs", "one program"])
@pytest.mark.parametrize("mode", ["int16", "int8", "float"])
@pytest.mark.parametrize("heads", [HEADS, ScanHeads(4, 2, 80, 32)], ids=["32 wide", "80 wide"])
def test_the_output_is_quantised_for_the_next_product(heads, mode, blocks):
    operands = made(heads, dtype=jnp.bfloat16)
    out, _, found = stepped(*operands, heads, activations=mode, blocks=blocks)
    expected = quantize_reference(out, mode)
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
        ("projected_BF", (3, 645), r"projected_BF must be \[3, 646\], got \[3, 645\]"),
        ("filters_LC", (3, 448), r"filters_LC must be \[4, 448\], got \[3, 448\]"),
        ("bias_C", (192,), r"bias_C must be \[448\], got \[192\]"),
        ("dt_N", (2,), r"dt_N must be \[6\], got \[2\]"),
        ("a_N", (1,), r"a_N must be \[6\], got \[1\]"),
        ("d_N", (6, 1), r"d_N must be \[6\], got \[6, 1\]"),
        ("scale_I", (96,), r"scale_I must be \[192\], got \[96\]"),
        ("memory_BNHW", (3, 6, 64, 32), r"memory_BNHW must be \[3, 6, 32, 64\], got \[3, 6, 64"),
        ("inputs_BLC", (3, 3, 64), r"inputs_BLC must be \[3, 3, 448\], got \[3, 3, 64\]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, shape, numbers):
    projected, *others = made(HEADS)
    projected = jnp.ones(shape) if name == "projected_BF" else projected
    others = [
        part._replace(**{name: jnp.ones(shape)}) if name in part._fields else part
        for part in others
    ]
    with pytest.raises(ValueError, match=numbers):
        step(projected, *others, HEADS, epsilon=EPSILON, target=TARGET)


def test_other_operands_that_do_not_fit_are_refused():
    projected, parameters, state = made(HEADS)
    with pytest.raises(ValueError, match=r"lengths_B must be \[3\], got \[2\]"):
        stepped(projected, parameters, state, HEADS, lengths_B=jnp.ones(2, jnp.int32))
    narrow = state._replace(memory_BNHW=state.memory_BNHW.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="memory_BNHW must be float32, got bfloat16"):
        stepped(projected, parameters, narrow, HEADS)
    with pytest.raises(ValueError, match="6 heads and 4 groups"):
        stepped(projected, parameters, state, ScanHeads(6, 4, 32, 64))


@pytest.mark.parametrize(
    ("sizes", "batch", "numbers"),
    [
        ((4, 2, 24, 32), 1, "heads 24 wide.*16, 32, 48, 64"),
        ((4, 2, 32, 512), 1, "states 512 wide.*16, 32, 64, 128, 256"),
        ((32, 2, 128, 128), 4096, r"\[4096, 32, 128, 128\].* 2147483647 elements"),
    ],
)
def test_what_kernels_cannot_do(sizes, batch, numbers):
    heads = ScanHeads(*sizes)
    run = functools.partial(step, heads=heads, epsilon=EPSILON, target=TARGET)
    with pytest.raises(NotImplementedError, match=numbers):
        jax.eval_shape(run, *jax.eval_shape(functools.partial(_zeros, heads, batch)))


def test_narrow_groups_are_not_quantised():
    heads = ScanHeads(6, 2, 16, 32)
    with pytest.raises(NotImplementedError, match="groups of 48, only multiples of 32"):
        stepped(*made(heads), heads, activations="int16")


def _zeros(heads, batch):
    N, C = heads.heads, heads.channels
    parameters = Parameters(*(jnp.zeros(size) for size in ((4, C), C, N, N, N, heads.inner)))
    memory = jnp.zeros((batch, N, heads.head_width, heads.state_width))
    state = RecurrentState(memory, jnp.zeros((batch, 3, C)))
    return jnp.zeros((batch, heads.projected)), parameters, state


@pytest.mark.parametrize("target", GPUS, ids=str)
def test_launches(target):
    """Two, whose outputs share memory with the states."""
    operands = jax.eval_shape(functools.partial(_zeros, HEADS, 2))
    run = functools.partial(step, heads=HEADS, epsilon=EPSILON, activations="int16", target=target)
    text = lowered_to_triton(target, run, *operands)
    assert text.count("__gpu$xla.gpu.triton") == 2
    assert text.count("output_operand_alias<") == 2
