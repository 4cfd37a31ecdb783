"""The selective scan of many tokens against its definition, token by token in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selective_scan import Tokens, check_scan, scan
from pallas_kernels.selective_scan.blocks import CHUNK_BLOCKS, ChunkBlocks
from pallas_kernels.targets import Target
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: Memories and directions in several parts, and in a single one.
PARTS = ChunkBlocks(32, 16, 16, 128, 1, 16, 16, 128)
WHOLE = ChunkBlocks(16, 256, 256, 128, 1, 256, 256, 128)


@functools.partial(jax.jit, static_argnames=("blocks", "exact"))
def scanned(tokens, a, d, memory, **how):
    return scan(tokens, a, d, memory, target=TARGET, **how)


def made(B=2, T=70, N=6, K=2, H=32, W=64, decay=1.0):
    """Random operands in float64, with directions that resemble one another."""
    random = np.random.default_rng([B, T, N, K, H, W])
    x, dt = random.normal(size=(B, T, N, H)), np.exp(random.normal(size=(B, T, N)) * 2 - 3)
    b, c = random.normal(size=(2, B, T, K, W)) + 0.5
    a, d = -decay * np.exp(random.normal(size=N)), random.normal(size=N)
    return Tokens(x, dt, b, c), a, d, random.normal(size=(B, N, H, W))


def narrow(operands):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), operands)


def truth(tokens, a, d, memory):
    (x, dt, b, c), out, memory = tokens, np.zeros(tokens.x_BTNH.shape), memory.copy()
    of = np.arange(x.shape[2]) // (x.shape[2] // b.shape[2])
    for t in range(x.shape[1]):
        memory *= np.exp(dt[:, t] * a)[..., None, None]
        memory += (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, of][:, :, None]
        out[:, t] = np.einsum("bnhw,bnw->bnh", memory, c[:, t, of]) + d[:, None] * x[:, t]
    return out, memory


@pytest.mark.parametrize("blocks", [PARTS, WHOLE], ids=["in parts", "whole"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(T=64, N=3, K=1, H=64, W=16),
        dict(B=1, T=5, N=3, K=3, H=16, W=128),
        dict(B=1, T=33, N=2, K=1, H=80, W=32),
        dict(T=100, decay=0.001),
        dict(T=100, decay=30.0),  # most tokens empty the memory, some hardly touch it
    ],
    ids=str,
)
def test_tokens_are_the_definition(sizes, blocks, distance):
    operands = made(**sizes)
    out, memory = scanned(*narrow(operands), blocks=blocks)
    assert out.dtype == memory.dtype == jnp.float32
    for found, expected in zip((out, memory), truth(*operands)):
        assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("blocks", CHUNK_BLOCKS.values(), ids=CHUNK_BLOCKS)
@pytest.mark.parametrize("H", [80, 128])
def test_the_sizes_of_each_gpu_give_the_definition(H, blocks, distance):
    operands = made(1, 150, 2, 1, H, 256)
    for found, expected in zip(scanned(*narrow(operands), blocks=blocks), truth(*operands)):
        assert distance(found, expected) < 1e-6


def test_an_empty_memory_is_filled(distance):
    tokens, a, d, memory = made(T=40)
    memory *= 0
    found = scanned(*narrow((tokens, a, d, memory)), blocks=PARTS)
    for one, expected in zip(found, truth(tokens, a, d, memory)):
        assert distance(one, expected) < 1e-6


def test_memories_that_every_token_empties_hold_the_last_token(distance):
    """Log decays of -100 and more: products of decays are zeros, which nothing is divided by."""
    tokens, a, d, memory = made(T=70)
    tokens = tokens._replace(dt_BTN=100 + np.abs(tokens.dt_BTN))
    found = scanned(*narrow((tokens, a * 0 - 1, d, memory)), blocks=PARTS)
    for one, expected in zip(found, truth(tokens, a * 0 - 1, d, memory)):
        assert np.isfinite(one).all() and distance(one, expected) < 1e-6


@pytest.mark.parametrize("real", [0, 1, 40])
def test_tokens_without_a_time_step_are_padding(real, distance):
    """They leave memories as they are, to the bit; outputs before them do not depend on them."""
    operands = made(T=70)
    tokens, a, d, memory = operands
    dt = np.where(np.arange(70)[None, :, None] < real, tokens.dt_BTN, 0)
    out, after = scanned(*narrow((tokens._replace(dt_BTN=dt), a, d, memory)), blocks=PARTS)
    whole = truth(Tokens(*(array[:, :real] for array in tokens)), a, d, memory)
    if real == 0:
        np.testing.assert_array_equal(after, memory.astype(np.float32))
    else:
        assert distance(out[:, :real], whole[0]) < 1e-6
    assert distance(after, whole[1]) < 1e-6


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [
        ("dt_BTN", (2, 70, 1), r"dt_BTN must be \[2, 70, 6\], got \[2, 70, 1\]"),
        ("b_BTKW", (2, 70, 4, 64), "6 heads and 4 groups"),
        ("b_BTKW", (2, 69, 2, 64), r"b_BTKW must be \[2, 70, 2, 64\], got \[2, 69, 2, 64\]"),
        ("c_BTKW", (2, 70, 1, 64), r"c_BTKW must be \[2, 70, 2, 64\], got \[2, 70, 1, 64\]"),
        ("a_N", (3,), r"a_N must be \[6\], got \[3\]"),
        ("d_N", (6, 1), r"d_N must be \[6\], got \[6, 1\]"),
        ("memory_BNHW", (2, 6, 64, 32), r"memory_BNHW must be \[2, 6, 32, 64\], got \[2, 6, 64,"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, shape, numbers):
    tokens, a, d, memory = narrow(made())
    others = dict(a_N=a, d_N=d, memory_BNHW=memory)
    if name in others:
        others[name] = jnp.ones(shape)
    else:
        tokens = tokens._replace(**{name: jnp.ones(shape)})
    with pytest.raises(ValueError, match=numbers):
        scanned(tokens, *others.values())


def test_operands_of_other_dtypes_are_refused():
    tokens, a, d, memory = narrow(made())
    with pytest.raises(ValueError, match="memory_BNHW must be float32, got bfloat16"):
        scanned(tokens, a, d, memory.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="x_BTNH must be float32, got float16"):
        scanned(tokens._replace(x_BTNH=tokens.x_BTNH.astype(jnp.float16)), a, d, memory)
    with pytest.raises(ValueError, match="a_N must be float32, got float16"):
        scanned(tokens, a.astype(jnp.float16), d, memory)


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ((1, 9, 2, 24, 32), "heads 24 wide.*16, 32, 48, 64"),
        ((1, 9, 2, 32, 48), "states 48 wide.*16, 32, 64, 128, 256$"),
        ((64, 8192, 32, 128, 128), r"\[64, 32, \d+, 128, 128\].* tokens.* 2147483647 elements"),
    ],
)
def test_what_kernels_cannot_do(sizes, numbers):
    with pytest.raises(NotImplementedError, match=numbers):
        check_scan(sizes, TARGET)


def test_without_matrix_units_for_float32_there_are_no_kernels():
    for target in (Target("rocm", "gfx1100"), Target("cuda", "7.5")):
        with pytest.raises(NotImplementedError, match=f"units of {target} do not multiply float32"):
            check_scan((1, 9, 2, 32, 32), target)


@pytest.mark.parametrize("target", [GPU for GPU in GPUS if GPU.multiplies_float32], ids=str)
def test_launches(target):
    """Three, and the memories share memory with the operand."""
    operands = jax.eval_shape(lambda: narrow(made()))
    for exact in (True, False):
        text = lowered_to_triton(
            target, functools.partial(scan, exact=exact, target=target), *operands
        )
        assert text.count("__gpu$xla.gpu.triton") == 3
        assert text.count("output_operand_alias<") == 1
