"""The selective state space of Mamba against its definition, token by token in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.nn import diagonal_scan
from rocmforge_jax.nn.diagonal_scan import CHUNK

pytestmark = pytest.mark.core

NAMES = ("x", "dt", "a", "b", "c", "d", "memory")
scan = jax.jit(diagonal_scan)


def truth(x, dt, a, b, c, d, memory):
    """Lets the memory decay, writes the token, reads."""
    out = d * x
    for t in range(x.shape[1]):
        memory = np.exp(dt[:, t, :, None] * a) * memory
        memory = memory + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        out[:, t] += np.einsum("bnw,bw->bn", memory, c[:, t])
    return out, memory


def made(B, T, N=14, W=6, strength=1.0, seed=0):
    """Random operands in float64. strength: Of the decay; 30 lets most tokens wipe the memory."""
    random = np.random.default_rng(seed)
    dt = np.exp(random.normal(size=(B, T, N)) * 2 - 3)
    b, c = random.normal(size=(2, B, T, W)) + 0.5
    a, d = -strength * np.exp(random.normal(size=(N, W))), random.normal(size=N)
    return random.normal(size=(B, T, N)), dt, a, b, c, d, random.normal(size=(B, N, W))


def single(operands):
    return [jnp.asarray(array, jnp.float32) for array in operands]


def check(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.float32
        assert np.linalg.norm(one - other) <= 1e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("tokens", [1, 2, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("strength", [1.0, 30.0])
def test_tokens_from_a_memory_on(tokens, strength):
    operands = made(3, tokens, strength=strength)
    check(scan(*single(operands)), truth(*operands))


def test_padding_never_enters_the_memory():
    operands, lengths = made(3, CHUNK + 5), [CHUNK + 2, 0, 7]
    padded = [array.copy() for array in operands]
    for row, length in enumerate(lengths):
        for array in (padded[0], padded[3], padded[4]):
            array[row, length:] = 1e3
    out, memory = scan(*single(padded), jnp.asarray(lengths, jnp.int32))
    for row, length in enumerate(lengths):
        x, dt, a, b, c, d, before = operands
        parts = [part[row : row + 1, :length] for part in (x, dt, b, c)]
        expected = truth(*parts[:2], a, *parts[2:], d, before[row : row + 1])
        check((out[row : row + 1, :length], memory[row : row + 1]), expected)


@pytest.mark.parametrize("name", NAMES[1:])
def test_shapes_that_do_not_fit(name):
    operands = dict(zip(NAMES, single(made(2, 5))))
    operands[name] = operands[name][..., :-1]
    if name == "b":  # it decides how many numbers a memory has
        name = "a"
    with pytest.raises(ValueError, match=rf"x is \[2, 5, 14\].*: {name} must be \["):
        diagonal_scan(*operands.values())
