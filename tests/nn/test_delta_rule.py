"""The gated delta rule against its definition, token by token in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax.nn import delta_rule
from rocmforge_jax.nn.delta_rule import CHUNK, _trial_error

pytestmark = pytest.mark.core

#: Relative L2 error in float32, of the single step and of chunks alike. Seen: 1.5e-7.
EXACT = 1e-6


def truth(q, k, v, log_decay, beta, memory):
    """One head of one sequence: lets the memory decay, moves it to the value, reads it."""
    out = np.zeros((len(q), v.shape[-1]))
    for t in range(len(q)):
        memory = np.exp(log_decay[t]) * memory
        memory = memory + np.outer(k[t], beta[t] * (v[t] - k[t] @ memory))
        out[t] = q[t] @ memory
    return out, memory


def every_head(operands, memory):
    """`truth` for each head of a batch [B, T, N, ...] -> [B, T, N, W], [B, N, H, W]."""
    B, T, N = operands[3].shape
    out, after = np.zeros((B, T, N, memory.shape[-1])), np.zeros(memory.shape)
    for b, n in np.ndindex(B, N):
        of_head = [a[b, :, n] for a in operands]
        out[b, :, n], after[b, n] = truth(*of_head, memory[b, n])
    return out, after


def made(B, T, N=3, H=24, W=40, strength=1.0, seed=0):
    """Random operands in float64, with keys that resemble one another, and a memory.

    strength: Of the decay. With 30, most tokens wipe the memory out, and some hardly touch it.
    """
    random = np.random.default_rng(seed)
    q, k = random.normal(size=(2, B, T, N, H)) + 0.5
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    log_decay = -strength * np.exp(random.normal(size=(B, T, N)) * 2 - 3)
    beta = 1 / (1 + np.exp(-2 * random.normal(size=(B, T, N))))
    operands = q / np.linalg.norm(q, axis=-1, keepdims=True), k, random.normal(size=(B, T, N, W))
    return (*operands, log_decay, beta), random.normal(size=(B, N, H, W))


def single(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def relative(got, expected):
    return np.linalg.norm(np.float64(got) - expected) / np.linalg.norm(expected)


@pytest.fixture(params=["xla", "pallas"])
def rule(request):
    """The rule on a backend, jitted, and widths of keys and values that it supports.

    Pallas's kernels are there, on a GPU or in the interpreter.
    """
    run = jax.jit(functools.partial(delta_rule, backend=request.param))
    with targets.use(targets.current() or targets.INTERPRET):
        yield run, dict(H=16, W=32) if request.param == "pallas" else {}


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("tokens", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 600, 5000])
def test_tokens_at_once_are_the_definition(tokens, strength):
    operands, memory = made(2, tokens, strength=strength)
    expected = every_head(operands, memory)
    for got, wanted in zip(jax.jit(delta_rule)(*single(*operands, memory)), expected):
        assert got.shape == wanted.shape and relative(got, wanted) < EXACT


def test_pieces_and_single_tokens_are_the_whole(rule):
    step, widths = rule
    operands, memory = made(1, 150, **widths)
    expected, after = every_head(operands, memory)
    at, found = 0, []
    memory = jnp.asarray(memory, jnp.float32)
    for size in (70, 1, 1, 39, 39):
        out, memory = step(*single(*(a[:, at : at + size] for a in operands)), memory)
        found.append(out)
        at += size
    assert at == 150
    assert relative(np.concatenate(found, axis=1), expected) < EXACT
    assert relative(memory, after) < EXACT


@pytest.mark.parametrize("padded", [1, 75])
def test_padding_never_enters_the_memory(padded, rule):
    """Rows with 0, 1 and 43 real tokens, or those that fit, and rubbish after them."""
    run, widths = rule
    operands, memory = made(3, padded, **widths)
    lengths = np.minimum([0, 1, 43], padded).astype(np.int32)
    for array in operands:
        for row, length in zip(array, lengths):
            row[length:] = 1e3
    out, after = run(*single(*operands, memory), lengths)
    for b, length in enumerate(lengths):
        of_row = [a[b : b + 1, :length] for a in operands]
        expected, expected_after = every_head(of_row, memory[b : b + 1])
        assert length == 0 or relative(out[b : b + 1, :length], expected) < EXACT
        assert relative(after[b : b + 1], expected_after) < EXACT


def test_a_memory_without_new_tokens_stays_to_the_bit(rule):
    run, widths = rule
    operands, memory = made(2, 5, **widths)
    none = jnp.zeros(2, jnp.int32)
    *operands, memory = single(*operands, memory)
    for tokens in (5, 1):
        _, after = run(*(a[:, :tokens] for a in operands), memory, none)
        np.testing.assert_array_equal(after, memory)


def test_the_gradient_in_kernels_is_that_of_plain_xla():
    operands, memory = made(1, 40, H=16, W=32)

    def loss(operands, backend):
        out, after = delta_rule(*operands, backend=backend)
        return (out**2).sum() + (after**2).sum()

    with targets.use(targets.current() or targets.INTERPRET):
        found, expected = (
            jax.grad(loss)(single(*operands, memory), backend) for backend in ("pallas", "xla")
        )
    for one, other in zip(found, expected):
        assert relative(one, np.float64(other)) < 10 * EXACT and jnp.abs(other).max() > 0


@pytest.mark.parametrize("exact", [True, False])
def test_the_trial_of_kernels_passes(exact):
    with targets.use(targets.current() or targets.INTERPRET) as target:
        rounds = target.platform == "cuda" and not exact
        assert float(_trial_error(16, 32, exact)) < (2e-3 if rounds else 5e-6)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_step_writes_its_memory_in_place(batch, optimised):
    """The donated memory is the only array of its size: XLA makes no copy of it."""
    operands, memory = made(batch, 1, N=8, H=64, W=64)
    donating = jax.jit(delta_rule, donate_argnums=5)
    compiled = donating.lower(*single(*operands, memory)).compile(optimised)
    bytes_ = memory.size * 4
    assert compiled.memory_analysis().alias_size_in_bytes >= bytes_
    assert compiled.memory_analysis().temp_size_in_bytes < bytes_ // 4


def test_operands_that_do_not_fit_are_refused():
    operands, memory = made(2, 5)
    arrays = dict(zip(("q", "k", "v", "log_decay", "beta", "memory"), single(*operands, memory)))
    for name, wrong, numbers in [
        ("k", jnp.ones((2, 5, 2, 24)), r"k must be \[2, 5, 3, 24\], got \[2, 5, 2, 24\]"),
        ("v", jnp.ones((2, 4, 3, 40)), r"v must be \[2, 5, 3, 40\], got \[2, 4, 3, 40\]"),
        ("log_decay", jnp.ones((2, 5, 1)), r"log_decay must be \[2, 5, 3\], got \[2, 5, 1\]"),
        ("beta", jnp.ones((2, 5)), r"beta must be \[2, 5, 3\], got \[2, 5\]"),
        ("memory", jnp.ones((2, 3, 40, 24)), r"memory must be \[2, 3, 24, 40\], got \[2, 3, 40"),
    ]:
        with pytest.raises(ValueError, match=numbers):
            delta_rule(*(arrays | {name: wrong}).values())
