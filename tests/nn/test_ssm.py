"""The selective state space of Mamba 2 against its definition, token by token in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax.nn import selective_scan
from rocmforge_jax.nn.ssm import CHUNK, _trial_error

pytestmark = pytest.mark.core

#: Relative L2 error in float32, of the single step and of chunks alike.
EXACT = 1e-6
NAMES = ("x", "dt", "a", "b", "c", "d", "memory")


def truth(x, dt, a, b, c, d, memory):
    """One head of one sequence: lets the memory decay, writes the token, reads."""
    out = np.zeros(x.shape)
    for t in range(len(x)):
        memory = np.exp(dt[t] * a) * memory + np.outer(dt[t] * x[t], b[t])
        out[t] = memory @ c[t] + d * x[t]
    return out, memory


def every_head(x, dt, a, b, c, d, memory):
    """`truth` for each head of a batch: head n takes b and c of group n // (N / K)."""
    out, after = np.zeros(x.shape), np.zeros(memory.shape)
    shared = x.shape[2] // b.shape[2]
    for i, n in np.ndindex(x.shape[0], x.shape[2]):
        b_TW, c_TW = (part[i, :, n // shared] for part in (b, c))
        out[i, :, n], after[i, n] = truth(
            x[i, :, n], dt[i, :, n], a[n], b_TW, c_TW, d[n], memory[i, n]
        )
    return out, after


def made(B, T, N=6, K=2, H=10, W=24, strength=1.0, seed=0):
    """Random operands in float64, with directions that resemble one another.

    strength: Of the decay. With 30, most tokens wipe the memory out, and some hardly touch it.
    """
    random = np.random.default_rng(seed)
    dt = np.exp(random.normal(size=(B, T, N)) * 2 - 3)
    b, c = random.normal(size=(2, B, T, K, W)) + 0.5
    x, memory = random.normal(size=(B, T, N, H)), random.normal(size=(B, N, H, W))
    a, d = -strength * np.exp(random.normal(size=N)), random.normal(size=N)
    return x, dt, a, b, c, d, memory


def single(operands):
    return [jnp.asarray(array, jnp.float32) for array in operands]


def of_tokens(operands, tokens):
    """The operands of some tokens alone; a, d and the memory belong to all."""
    return [a if n in ("a", "d", "memory") else a[:, tokens] for n, a in zip(NAMES, operands)]


def relative(got, expected):
    return np.linalg.norm(np.float64(got) - expected) / np.linalg.norm(expected)


@pytest.fixture(params=["xla", "pallas"])
def scan(request):
    """The scan on a backend, jitted, and widths of heads and states that it supports.

    Pallas's kernels are there, on a GPU or in the interpreter.
    """
    run = jax.jit(functools.partial(selective_scan, backend=request.param))
    with targets.use(targets.current() or targets.INTERPRET):
        yield run, dict(H=16, W=32) if request.param == "pallas" else {}


@pytest.mark.parametrize("strength", [1.0, 30.0])
@pytest.mark.parametrize("tokens", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 600, 5000])
def test_tokens_at_once_are_the_definition(tokens, strength):
    operands = made(2, tokens, strength=strength)
    found = jax.jit(selective_scan)(*single(operands))
    for got, wanted in zip(found, every_head(*operands)):
        assert got.shape == wanted.shape and relative(got, wanted) < EXACT


@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (5, 5), (1, 1)])
@pytest.mark.parametrize("tokens", [1, 70])
def test_heads_that_share_directions(heads, groups, tokens):
    operands = made(2, tokens, N=heads, K=groups, H=7, W=3)
    found = jax.jit(selective_scan)(*single(operands))
    for got, wanted in zip(found, every_head(*operands)):
        assert relative(got, wanted) < EXACT


def test_pieces_and_single_tokens_are_the_whole(scan):
    step, widths = scan
    operands = made(1, 250, **widths)
    expected, after = every_head(*operands)
    at, found = 0, []
    memory = operands[-1]
    for size in (130, 1, 1, 59, 59):
        piece = of_tokens(operands, slice(at, at + size))
        out, memory = step(*single([*piece[:-1], memory]))
        found.append(out)
        at += size
    assert at == 250
    assert relative(np.concatenate(found, axis=1), expected) < EXACT
    assert relative(memory, after) < EXACT


@pytest.mark.parametrize("padded", [1, 75])
def test_padding_never_enters_the_memory(padded, scan):
    """Rows with 0, 1 and 43 real tokens, or those that fit, and rubbish after them."""
    run, widths = scan
    operands = made(3, padded, **widths)
    lengths = np.minimum([0, 1, 43], padded).astype(np.int32)
    for name, array in zip(NAMES, operands):
        if name in ("x", "dt", "b", "c"):
            for row, length in zip(array, lengths):
                row[length:] = 1e3
    out, after = run(*single(operands), lengths)
    for i, length in enumerate(lengths):
        x, dt, a, b, c, d, memory = of_tokens(operands, slice(0, length))
        i = slice(i, i + 1)
        expected, expected_after = every_head(x[i], dt[i], a, b[i], c[i], d, memory[i])
        assert length == 0 or relative(out[i, :length], expected) < EXACT
        assert relative(after[i], expected_after) < EXACT


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_memory_without_new_tokens_stays_to_the_bit(tokens, scan):
    run, widths = scan
    operands = single(made(2, tokens, **widths))
    _, after = run(*operands, jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(after, operands[-1])


def test_the_gradient_in_kernels_is_that_of_plain_xla():
    operands = single(made(1, 40, H=16, W=32))

    def loss(operands, backend):
        out, after = selective_scan(*operands, backend=backend)
        return (out**2).sum() + (after**2).sum()

    with targets.use(targets.current() or targets.INTERPRET):
        found, expected = (jax.grad(loss)(operands, backend) for backend in ("pallas", "xla"))
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
    operands = single(made(batch, 1, N=8, H=64, W=64))
    compiled = jax.jit(selective_scan, donate_argnums=6).lower(*operands).compile(optimised)
    size = operands[-1].nbytes
    assert compiled.memory_analysis().alias_size_in_bytes >= size
    assert compiled.memory_analysis().temp_size_in_bytes < size // 4


@pytest.mark.parametrize(
    ("name", "shape", "numbers"),
    [
        ("dt", (2, 5, 1), r"dt must be \[2, 5, 6\], got \[2, 5, 1\]"),
        ("a", (6, 1), r"a must be \[6\], got \[6, 1\]"),
        ("b", (2, 5, 4, 24), "6 heads share 4 directions"),
        ("b", (2, 4, 2, 24), r"b must be \[2, 5, 2, 24\], got \[2, 4, 2, 24\]"),
        ("c", (2, 5, 2, 23), r"c must be \[2, 5, 2, 24\], got \[2, 5, 2, 23\]"),
        ("d", (10,), r"d must be \[6\], got \[10\]"),
        ("memory", (2, 6, 24, 10), r"memory must be \[2, 6, 10, 24\], got \[2, 6, 24, 10\]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, shape, numbers):
    arrays = dict(zip(NAMES, single(made(2, 5)))) | {name: jnp.ones(shape)}
    with pytest.raises(ValueError, match=numbers):
        selective_scan(*arrays.values())
