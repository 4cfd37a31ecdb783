"""The gated delta rule for many tokens against its definition, token by token in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.delta_rule import Tokens, check_rule, rule
from pallas_kernels.delta_rule.blocks import CHUNK_BLOCKS, ChunkBlocks
from pallas_kernels.targets import Target
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: Chunks of four blocks, and of a single one.
FOUR = ChunkBlocks(64, 16, 16, 32, 128, 128, 128)
ONE = ChunkBlocks(16, 32, 32, 16, 128, 128, 128)


@functools.partial(jax.jit, static_argnames=("blocks", "exact"))
def ruled(tokens, memory, **how):
    return rule(tokens, memory, target=TARGET, **how)


def made(B=2, T=150, N=3, H=32, W=64, decay=1.0, alike=0.0):
    """Random tokens and memories in float64. Keys resemble one another as much as `alike` says."""
    random = np.random.default_rng([B, T, N, H, W])
    q, k = random.normal(size=(2, B, T, N, H)) + alike
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    log_decay = -decay * np.exp(random.normal(size=(B, T, N)) * 2 - 3)
    beta = 1 / (1 + np.exp(-2 * random.normal(size=(B, T, N))))
    memory = random.normal(size=(B, N, H, W))
    return Tokens(q, k, random.normal(size=(B, T, N, W)), log_decay, beta), memory


def narrow(tokens, memory):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (tokens, memory))


def truth(tokens, memory):
    q, k, v, log_decay, beta = tokens
    out, memory = np.zeros(v.shape), memory.copy()
    for t in range(q.shape[1]):
        memory *= np.exp(log_decay[:, t])[..., None, None]
        held = np.einsum("bnh,bnhw->bnw", k[:, t], memory)
        change = beta[:, t, :, None] * (v[:, t] - held)
        memory += k[:, t, :, :, None] * change[:, :, None]
        out[:, t] = np.einsum("bnh,bnhw->bnw", q[:, t], memory)
    return out, memory


@pytest.mark.parametrize("blocks", [FOUR, ONE], ids=["chunks of 64", "chunks of 16"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(T=128, H=16, W=16),
        dict(B=1, T=5, N=2, H=64, W=32),
        dict(T=100, decay=30.0),  # most tokens empty the memory, some hardly touch it
        dict(T=100, decay=0.1, alike=2.0),
    ],
    ids=str,
)
def test_tokens_are_the_definition(sizes, blocks, distance):
    operands = made(**sizes)
    out, memory = ruled(*narrow(*operands), blocks=blocks)
    assert out.dtype == memory.dtype == jnp.float32
    for found, expected in zip((out, memory), truth(*operands)):
        assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("blocks", CHUNK_BLOCKS.values(), ids=CHUNK_BLOCKS)
def test_the_sizes_of_each_gpu_give_the_definition(blocks, distance):
    operands = made(1, 75, 1, 128, 128)
    for found, expected in zip(ruled(*narrow(*operands), blocks=blocks), truth(*operands)):
        assert distance(found, expected) < 1e-6


def test_tokens_without_share_and_decay_leave_memories_as_they_are():
    tokens, memory = narrow(*made(T=40))
    tokens = tokens._replace(beta_BTN=tokens.beta_BTN * 0, log_decay_BTN=tokens.log_decay_BTN * 0)
    np.testing.assert_array_equal(ruled(tokens, memory, blocks=FOUR)[1], memory)


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [
        ("q_BTNH", (2, 150, 3, 16), r"q_BTNH must be \[2, 150, 3, 32\], got \[2, 150, 3, 16\]"),
        ("v_BTNW", (2, 149, 3, 64), r"v_BTNW must be \[2, 150, 3, 64\], got \[2, 149, 3, 64\]"),
        ("log_decay_BTN", (2, 150, 1), r"log_decay_BTN must be \[2, 150, 3\], got \[2, 150, 1\]"),
        ("beta_BTN", (1, 150, 3), r"beta_BTN must be \[2, 150, 3\], got \[1, 150, 3\]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, shape, numbers):
    tokens, memory = narrow(*made())
    with pytest.raises(ValueError, match=numbers):
        ruled(tokens._replace(**{name: jnp.ones(shape)}), memory)


def test_memories_that_do_not_fit_are_refused():
    tokens, memory = narrow(*made())
    with pytest.raises(ValueError, match=r"memory_BNHW must be \[2, 3, 32, 64\], got \[2, 3, 64,"):
        ruled(tokens, memory.mT)
    with pytest.raises(ValueError, match="memory_BNHW must be float32, got bfloat16"):
        ruled(tokens, memory.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="k_BTNH must be float32, got float16"):
        ruled(tokens._replace(k_BTNH=tokens.k_BTNH.astype(jnp.float16)), memory)


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ((1, 9, 2, 24, 32), "keys 24 wide.*16, 32, 64, 128$"),
        ((1, 9, 2, 32, 256), "values 256 wide.*16, 32, 64, 128$"),
        ((64, 8192, 32, 128, 128), r"\[64, 32, \d+, 128, 128\].* tokens.* 2147483647 elements"),
    ],
)
def test_what_kernels_cannot_do(sizes, numbers):
    with pytest.raises(NotImplementedError, match=numbers):
        check_rule(sizes, TARGET)


def test_without_matrix_units_for_float32_there_are_no_kernels():
    for target in (Target("rocm", "gfx1100"), Target("cuda", "7.5")):
        with pytest.raises(NotImplementedError, match=f"units of {target} do not multiply float32"):
            check_rule((1, 9, 2, 32, 32), target)


@pytest.mark.parametrize("target", [GPU for GPU in GPUS if GPU.multiplies_float32], ids=str)
def test_launches(target):
    """Three, and the memories share memory with the operand."""
    operands = jax.eval_shape(lambda: narrow(*made()))
    for exact in (True, False):
        text = lowered_to_triton(
            target, functools.partial(rule, exact=exact, target=target), *operands
        )
        assert text.count("__gpu$xla.gpu.triton") == 3
        assert text.count("output_operand_alias<") == 1


def test_sizes_are_a_part_of_the_result_only_by_rounding(distance):
    operands = narrow(*made())
    expected = ruled(*operands, blocks=ONE)
    for tokens in (32, 64):
        blocks = dataclasses.replace(FOUR, tokens=tokens)
        for found, one in zip(ruled(*operands, blocks=blocks), expected):
            assert distance(found, one) < 1e-6
