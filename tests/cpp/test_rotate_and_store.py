"""New tokens enter the KV cache in C++, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.cpp import attention
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP

#: B, T, N, K, H, S, starts: one token and several, one KV head and as many as heads, and widths and
#: tokens that fill no vector.
CASES = [
    (1, 1, 14, 2, 64, 256, [190]),
    (2, 5, 6, 2, 40, 100, [70, 3]),
    (1, 70, 8, 8, 128, 77, [7]),
    (3, 1, 4, 1, 80, 50, [0, 49, 20]),
    (1, 300, 7, 1, 24, 700, [211]),
    (2, 17, 2, 1, 512, 40, [9, 23]),
]


@pytest.fixture(autouse=True)
def loaded(library):
    """The function is compiled once, for all sets of instructions."""


def operands(B, T, N, K, H, S, starts, normal):
    q, keys, values = normal(B, T, N, H), normal(B, K, H, S, seed=1), normal(B, K, S, H, seed=2)
    return q, keys, values, np.array(starts, np.int32)


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


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_that_do_not_rotate(case, interleaved, normal):
    """Without angles heads are stored as they are."""
    B, T, _, K, H, *_ = case
    q, keys, values, starts = operands(*case, normal)
    k, v, none = normal(B, T, K, H, seed=3), normal(B, T, K, H, seed=4), np.zeros((B, T, 0), "f4")
    expected_keys, expected_values = keys.copy(), values.copy()
    for b, start in enumerate(starts):
        expected_keys[b, :, :, start : start + T] = k[b].transpose(1, 2, 0)
        expected_values[b, :, start : start + T] = v[b].transpose(1, 0, 2)
    old = jnp.asarray(keys), jnp.asarray(values)
    found = attention.rotate_and_store(q, k, v, none, none, *old, starts, interleaved=interleaved)
    for one, other in zip(found, (q, expected_keys, expected_values), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_cache_that_is_donated_is_updated_where_it_lies(normal, optimised):
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
    text = step.lower(keys, values).compile(optimised).as_text()
    _, *after = step(keys, values)
    assert tuple(a.unsafe_buffer_pointer() for a in after) == before
    assert " copy(" not in text


def test_tokens_beyond_the_cache_fail(normal):
    q, keys, values, _ = operands(*CASES[1], normal)
    k, angles = normal(2, 5, 2, 40, seed=3), normal(2, 5, 20)
    for starts, numbers in (
        ([96, 0], "5 tokens after 96 in row 0 do not fit 100 slots.* 101"),
        ([0, -1], "5 tokens after -1 in row 1"),
    ):
        with pytest.raises(Exception, match=numbers):
            jax.block_until_ready(
                attention.rotate_and_store(
                    q, k, k, angles, angles, keys, values, np.int32(starts), interleaved=False
                )
            )


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
