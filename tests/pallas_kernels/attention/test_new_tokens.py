"""Decode of tokens that the cache does not hold yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule, NewTokens, decode_attention
from tests.pallas_kernels.attention.cases import SMALL, rule_of, shapes, truth
from tests.pallas_kernels.conftest import TARGET

pytestmark = pytest.mark.core


def rotated(heads_BNH, cos_BR, sin_BR, interleaved):
    """In float64."""
    heads, R = np.asarray(heads_BNH).astype(np.float64), cos_BR.shape[1]
    first, second = (
        (slice(0, 2 * R, 2), slice(1, 2 * R, 2)) if interleaved else (slice(0, R), slice(R, 2 * R))
    )
    a, b, out, cos, sin = (
        heads[..., first],
        heads[..., second],
        heads.copy(),
        np.float64(cos_BR)[:, None],
        np.float64(sin_BR)[:, None],
    )
    out[..., first], out[..., second] = a * cos - b * sin, b * cos + a * sin
    return out


@pytest.mark.parametrize(
    ("N", "K", "H", "R", "interleaved", "normed", "options"),
    [
        (4, 2, 64, 32, True, False, "plain"),
        (7, 1, 80, 20, False, True, "window-20"),
        (6, 2, 32, 16, True, True, "all"),
        (20, 1, 40, 10, False, False, "window-1"),
        (4, 2, 512, 256, False, True, "all"),
        (2, 1, 512, 64, True, False, "window-20"),
    ],
)
def test_decode_of_new_tokens(N, K, H, R, interleaved, normed, options, operands, normal, distance):
    """They are normed or not, rotated, attended to and stored; nothing else of the caches changes.

    At the first slot, borders of blocks, the last slot.
    """
    slots = np.array([0, 1, 15, 16, 31, 79])
    B, rule = len(slots), rule_of(options, H**-0.5, N, normal)
    q, keys, values = operands(B, 1, N, K, H, 80)
    k, v, angles = normal(B, K, H, seed=5), normal(B, K, H, seed=6), normal(B, R, seed=7)
    norms = (
        ((1 + 0.1 * normal(H, seed=8), 1 + 0.1 * normal(H, seed=9)), (1e-3, 0.1))
        if normed
        else None
    )
    new = NewTokens(k, v, np.cos(angles), np.sin(angles), interleaved, norms)
    # From the new token's slot on.
    dirty = jnp.where((np.arange(80) >= slots[:, None])[:, None, :, None], jnp.nan, values)

    def call(q, keys, values, lengths, *arrays):
        return decode_attention(
            q,
            keys,
            values,
            lengths,
            rule,
            new=NewTokens(*arrays, interleaved, norms),
            target=TARGET,
            blocks=SMALL,
        )

    out, found_keys, found_values = jax.jit(call)(
        q[:, 0], keys, dirty, jnp.int32(slots + 1), *new[:4]
    )

    def over_root(heads, epsilon):
        return heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + epsilon)

    def norm(heads, i):
        return over_root(np.float64(heads), norms[1][i]) * norms[0][i] if normed else heads

    def turn(heads, i):
        return rotated(norm(heads, i), new.cos_BR, new.sin_BR, interleaved)

    all_keys, all_values = np.array(keys), np.array(values)
    for b, slot in enumerate(slots):
        all_keys[b, :, :, slot], all_values[b, :, slot] = turn(k, 1)[b], v[b]
    expected = truth(turn(q[:, 0], 0)[:, None], all_keys, all_values, slots, rule)
    assert distance(out[:, None], expected) < 1e-6
    np.testing.assert_allclose(found_keys, all_keys, atol=1e-6)  # of size 1, rotated in float32
    for b, slot in enumerate(slots):
        np.testing.assert_array_equal(found_values[b, :, : slot + 1], all_values[b, :, : slot + 1])


def test_a_new_token_beyond_the_cache_is_not_stored(operands):
    q, keys, values = operands(1, 1, 2, 1, 32, 20)
    ones = jnp.ones((1, 1, 32), jnp.float32)
    new = NewTokens(ones, ones, jnp.ones((1, 8)), jnp.zeros((1, 8)), True)
    _, found_keys, found_values = jax.jit(
        lambda q, keys, values, lengths: decode_attention(
            q, keys, values, lengths, AttentionRule(0.1), new=new, target=TARGET
        )
    )(q[:, 0], keys, values, jnp.int32([21]))
    np.testing.assert_array_equal(found_keys, keys)
    np.testing.assert_array_equal(found_values, values)


def test_new_tokens_that_do_not_fit():
    def of(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def call(k, cos, sin):
        return jax.eval_shape(
            lambda q, keys, values, lengths, *arrays: decode_attention(
                q,
                keys,
                values,
                lengths,
                AttentionRule(0.1),
                target=TARGET,
                new=NewTokens(arrays[0], arrays[0], *arrays[1:], True),
            ),
            *shapes(),
            k,
            cos,
            sin,
        )

    with pytest.raises(
        ValueError, match=r"k_BKH of the new tokens is \[2, 4, 64\], the cache needs \[2, 2, 64\]"
    ):
        call(of(2, 4, 64), of(2, 8), of(2, 8))
    for angles in ((of(2, 8), of(2, 7)), (of(1, 8), of(1, 8)), (of(2, 33), of(2, 33))):
        with pytest.raises(ValueError, match="angles of .* for 2 sequences with heads of 64"):
            call(of(2, 2, 64), *angles)
    with pytest.raises(ValueError, match=r"the scale of a norm is \[32\], heads are 64 wide"):
        new = NewTokens(
            of(2, 2, 64), of(2, 2, 64), of(2, 8), of(2, 8), True, ((of(64), of(32)), (1e-6, 1e-6))
        )
        jax.eval_shape(
            lambda *operands: decode_attention(
                *operands, AttentionRule(0.1), target=TARGET, new=new
            ),
            *shapes(),
        )
