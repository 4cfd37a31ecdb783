"""Attention over a cache in C++, and what puts tokens into the cache, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.cpp import attention
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP

#: B, T, N, K, H, S, starts: one token and several, one KV head and as many as heads, widths and
#: slots that fill no tile.
CASES = [
    (1, 1, 14, 2, 64, 256, [190]),
    (2, 5, 6, 2, 40, 100, [70, 3]),
    (1, 70, 8, 8, 128, 77, [7]),
    (3, 1, 4, 1, 80, 50, [0, 49, 20]),
    (1, 300, 7, 1, 24, 700, [211]),
]


@pytest.fixture(autouse=True)
def every_set_of_instructions(instructions):
    """All tests here run with each set of instructions."""


def operands(B, T, N, K, H, S, starts, normal):
    q, keys, values = normal(B, T, N, H), normal(B, K, H, S, seed=1), normal(B, K, S, H, seed=2)
    return q, keys, values, np.array(starts, np.int32)


def exact(q, keys, values, starts):
    """float64: each token over the slots up to its own."""
    B, T, N, H = q.shape
    group, out = N // keys.shape[1], np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        seen = starts[b] + t + 1
        scores = np.float64(q[b, t, n]) @ np.float64(keys[b, n // group, :, :seen]) * H**-0.5
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ np.float64(values[b, n // group, :seen])
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, normal, distance):
    q, keys, values, starts = operands(*case, normal)
    for b, start in enumerate(starts):  # what no token sees, whatever it is
        keys[b, :, :, start + case[1] :] = values[b, :, start + case[1] :] = np.nan
    out = jax.jit(lambda *of: attention.attend(*of, scale=case[4] ** -0.5))(q, keys, values, starts)
    assert distance(out, exact(q, keys, values, starts)) < 1e-6


def test_large_scores_and_what_is_no_number(normal):
    """A softmax that overflows without care; a NaN poisons the query that has it, no other."""
    q, keys, values, starts = operands(*CASES[1], normal)
    q *= 300
    out = attention.attend(q, keys, values, starts, scale=1.0)
    assert np.isfinite(out).all() and np.abs(out).max() <= np.abs(values).max() * (1 + 1e-6)
    q[1, 2, 3, 4] = np.nan
    poisoned = np.isnan(attention.attend(q, keys, values, starts, scale=1.0)).any(axis=-1)
    assert np.argwhere(poisoned).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_rotated_and_put_into_the_cache(case, interleaved, normal):
    (B, T, _, K, H, *_), half = case, case[4] // 4
    q, keys, values, starts = operands(*case, normal)
    k, v, angles = (
        normal(B, T, K, H, seed=3),
        normal(B, T, K, H, seed=4),
        normal(B, T, half, seed=5),
    )
    cos, sin = np.cos(angles), np.sin(angles)

    def rotated(x):
        first, second = np.s_[0 : 2 * half : 2], np.s_[1 : 2 * half : 2]
        if not interleaved:
            first, second = np.s_[:half], np.s_[half : 2 * half]
        out, c, s = np.float64(x), np.float64(cos)[:, :, None], np.float64(sin)[:, :, None]
        out[..., first], out[..., second] = (
            x[..., first] * c - x[..., second] * s,
            x[..., second] * c + x[..., first] * s,
        )
        return out

    expected_keys, expected_values = np.float64(keys), np.float64(values)
    for b, start in enumerate(starts):
        expected_keys[b, :, :, start : start + T] = rotated(k)[b].transpose(1, 2, 0)
        expected_values[b, :, start : start + T] = v[b].transpose(1, 0, 2)
    found = attention.rotate_and_store(
        q, k, v, cos, sin, jnp.asarray(keys), jnp.asarray(values), starts, interleaved=interleaved
    )
    for one, other in zip(found, (rotated(q), expected_keys, expected_values)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_a_cache_that_is_donated_is_updated_where_it_lies(normal):
    q, keys, values, starts = operands(*CASES[0], normal)
    k, angles = normal(1, 1, 2, 64, seed=3), normal(1, 1, 32)
    step = jax.jit(
        lambda keys, values: attention.rotate_and_store(
            q, k, k, angles, angles, keys, values, starts, interleaved=False
        ),
        donate_argnums=(0, 1),
    )
    keys, values = jnp.array(keys), jnp.array(values)
    before = keys.unsafe_buffer_pointer(), values.unsafe_buffer_pointer()
    text = step.lower(keys, values).compile().as_text()
    _, *after = step(keys, values)
    assert tuple(a.unsafe_buffer_pointer() for a in after) == before
    assert " copy(" not in text


def test_tokens_beyond_the_cache_fail(normal):
    q, keys, values, _ = operands(*CASES[1], normal)
    for starts in ([96, 0], [0, -1]):
        with pytest.raises(Exception, match="tokens beyond the cache"):
            jax.block_until_ready(
                attention.attend(q, keys, values, np.array(starts, np.int32), scale=1.0)
            )


@pytest.mark.parametrize("wrong", ["q", "values", "starts", "dtype"])
def test_shapes_that_do_not_fit_are_refused_with_all_of_them(wrong, normal):
    q, keys, values, starts = operands(*CASES[1], normal)
    q = q[:, :, :5] if wrong == "q" else q.astype(np.float16) if wrong == "dtype" else q
    values, starts = (
        values[:, :, :-1] if wrong == "values" else values,
        (starts[:1] if wrong == "starts" else starts),
    )
    with pytest.raises(
        ValueError,
        match=r"attention takes float32 q, keys, values and int32 starts that fit, got float",
    ):
        attention.attend(q, keys, values, starts, scale=1.0)


def test_new_tokens_that_do_not_fit_are_refused(normal):
    q, keys, values, starts = operands(*CASES[1], normal)
    k, angles = normal(2, 5, 2, 40), normal(2, 5, 20)

    def call(k, angles):
        return attention.rotate_and_store(
            q, k, k, angles, angles, keys, values, starts, interleaved=False
        )

    with pytest.raises(
        ValueError,
        match=(
            r"k is \[2, 4, 2, 40\], v \[2, 4, 2, 40\], for q \[2, 5, 6, 40\] and keys \[2, 2, 40,"
            r" 100\]"
        ),
    ):
        call(k[:, 1:], angles)
    with pytest.raises(
        ValueError, match=r"cos is \[2, 5, 21\], sin \[2, 5, 21\], for q \[2, 5, 6, 40\]"
    ):
        call(k, normal(2, 5, 21))
