"""Single tokens of recurrences in C++ against float64, with every set of instructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.backends import BackendError, record
from rocmforge_jax.cpp import recurrence
from rocmforge_jax.nn import delta_rule, selective_scan
from tests.cpp.conftest import NEEDS_CPP

pytestmark = [NEEDS_CPP, pytest.mark.core]

#: Relative L2 error in float32, that of plain XLA.
EXACT = 1e-6
#: B, N, H, W: batches of 1 and 5, heads that are no power of two, columns that fill no vector.
SIZES = [(1, 16, 128, 128), (5, 3, 24, 40), (2, 7, 9, 3), (1, 1, 1, 1), (5, 6, 64, 85)]


def relative(found, exact):
    return np.linalg.norm(np.float64(found) - exact) / np.linalg.norm(exact)


def delta_operands(B, N, H, W, normal):
    q, k = normal(B, N, H), normal(B, N, H, seed=1) / np.float32(H**0.5)
    decay, beta = -np.abs(normal(B, N)), np.abs(normal(B, N, seed=1)) / 4
    return q, k, normal(B, N, W, seed=2), decay, beta, normal(B, N, H, W)


def scan_operands(B, N, H, W, K, normal):
    x, decay = normal(B, N, H), -np.abs(normal(B, N))
    return x, decay, normal(B, K, W), normal(B, K, W, seed=1), normal(B, N, H, W)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_delta_rule_is_its_definition(size, instructions, normal):
    operands = delta_operands(*size, normal)
    q, k, v, decay, beta, memory = (np.float64(a) for a in operands)
    memory = np.exp(decay)[..., None, None] * memory
    change = beta[..., None] * (v - np.einsum("bnh,bnhw->bnw", k, memory))
    memory = memory + k[..., None] * change[:, :, None]
    exact = np.einsum("bnh,bnhw->bnw", q, memory), memory
    for found, wanted in zip(jax.jit(recurrence.delta_step)(*operands), exact, strict=True):
        assert found.shape == wanted.shape and relative(found, wanted) < EXACT


@pytest.mark.parametrize("groups", [1, "heads"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_state_space_is_its_definition(size, groups, instructions, normal):
    N = size[1]
    operands = scan_operands(*size, N if groups == "heads" else groups, normal)
    x, decay, b, c, memory = (np.float64(a) for a in operands)
    b, c = (np.repeat(a, N // a.shape[1], axis=1) for a in (b, c))
    memory = np.exp(decay)[..., None, None] * memory + x[..., None] * b[:, :, None]
    exact = np.einsum("bnhw,bnw->bnh", memory, c), memory
    for found, wanted in zip(jax.jit(recurrence.scan_step)(*operands), exact, strict=True):
        assert found.shape == wanted.shape and relative(found, wanted) < EXACT


def of_one_token(normal, B=3, N=6, H=10, W=24, K=2):
    """The operands of `delta_rule` and of `selective_scan`."""
    q, k, v, decay, beta, memory = delta_operands(B, N, H, W, normal)
    delta = *(a[:, None] for a in (q, k, v, decay, beta)), memory
    x, dt, b, c, memory = scan_operands(B, N, H, W, K, normal)
    tokens = [a[:, None] for a in (x, -dt, b, c)]
    return {delta_rule: delta, selective_scan: (*tokens[:2], dt[0], *tokens[2:], dt[1], memory)}


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("rule", [delta_rule, selective_scan])
def test_one_token_goes_through_cpp(rule, normal):
    """Numbers and gradients are plain XLA's, also in a ragged batch, which the padding leaves."""
    operands, lengths = of_one_token(normal)[rule], np.array([1, 0, 1], np.int32)
    found, exact = (
        jax.value_and_grad(
            lambda *o, backend=backend: sum(
                (a**2).sum() for a in rule(*o, lengths, backend=backend)
            ),
            argnums=tuple(range(len(operands))),
        )(*map(jnp.asarray, operands))
        for backend in (None, "xla")
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert relative(one, np.float64(other)) < EXACT
    with record() as decisions:
        _, memory = rule(*operands, lengths)
    assert [d.choice.name for d in decisions] == ["cpp"]
    assert "memory once, in place" in decisions[0].choice.reason
    np.testing.assert_array_equal(memory[1], operands[-1][1])


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("rule", [delta_rule, selective_scan])
def test_the_memory_is_written_in_place(rule, normal, optimised):
    operands = of_one_token(normal, H=64, W=96)[rule]
    last = len(operands) - 1
    compiled = jax.jit(rule, donate_argnums=last).lower(*operands).compile(optimised)
    sizes, bytes_ = compiled.memory_analysis(), operands[-1].nbytes
    assert sizes.alias_size_in_bytes >= bytes_ and sizes.temp_size_in_bytes < bytes_ // 4


@pytest.mark.parametrize("rule", [delta_rule, selective_scan])
def test_without_the_library_plain_xla_computes(rule, normal):
    operands = of_one_token(normal)[rule]
    with record() as decisions:
        rule(*operands)
    assert decisions[0].choice.name == "xla" and "not built" in decisions[0].choice.reason
    with pytest.raises(BackendError, match="build-native"):
        rule(*operands, backend="cpp")


def test_other_dtypes_are_refused():
    ones = jnp.ones((1, 1, 8), jnp.bfloat16)
    with pytest.raises(ValueError, match="float32, got bfloat16"):
        recurrence.scan_step(ones, *[jnp.ones((1, 1))] * 3, jnp.ones((1, 1, 8, 8)))
