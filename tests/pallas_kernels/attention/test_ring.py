"""Decode of ring buffers, and of heads that do not rotate, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule, NewTokens, decode_attention, reference
from pallas_kernels.attention.blocks import Blocks
from tests.pallas_kernels.attention.cases import BACKENDS, SMALL, shapes, truth
from tests.pallas_kernels.conftest import GPUS, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: Slots of a ring, and tokens of the longest sequence.
SLOTS, TOKENS = 64, 211
#: Lengths at both sides of borders of blocks and of the ring, and several times around it.
LENGTHS = np.array([0, 1, 16, 17, 63, 64, 65, 80, 127, 128, 129, 192, 203, 211])
#: Windows of the rules: all that a ring of 64 slots can show, its last block but one slot, fewer.
RULES = {
    "window-1": dict(window=1),
    "window-20": dict(window=20),
    "window-49": dict(window=49, sinks=True),
    "window-64": dict(window=64),
    "all": dict(window=33, soft_cap=5.0, sinks=True),
}


def made(name, H, N, normal):
    options = dict(RULES[name])
    if options.pop("sinks", False):
        options["sinks_N"] = 2 * normal(N, seed=4)
    return AttentionRule(H**-0.5, **options)


def rings(keys, values, lengths, empty=np.nan):
    """Rings that hold the tokens before `lengths`; empty slots hold `empty`."""
    keys, values = np.asarray(keys), np.asarray(values)
    (B, K, H, _), S = keys.shape, SLOTS
    in_keys, in_values = np.full((B, K, H, S), float(empty)), np.full((B, K, S, H), float(empty))
    for b, length in enumerate(lengths):
        for p in range(length):
            in_keys[b, ..., p % S], in_values[b, :, p % S] = keys[b, ..., p], values[b, :, p]
    return in_keys.astype(keys.dtype), in_values.astype(values.dtype)


def decode(backend, q, keys, values, lengths, rule, *, new=None, blocks=SMALL):
    def call(q, keys, values, lengths, rule, new):
        if backend == "xla":
            return reference.decode(q, keys, values, lengths, rule, ring=True)
        return decode_attention(
            q, keys, values, lengths, rule, target=TARGET, blocks=blocks, new=new, ring=True
        )

    return jax.jit(call)(q[:, 0], jnp.asarray(keys), jnp.asarray(values), lengths, rule, new)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("N", "K", "H"), [(4, 2, 64), (7, 1, 80)])
def test_decode_of_a_ring(backend, name, N, K, H, operands, normal, distance):
    q, keys, values = operands(len(LENGTHS), 1, N, K, H, TOKENS)
    empty = 1e4 if backend == "xla" else np.nan  # plain XLA needs finite numbers
    rule, ring = made(name, H, N, normal), rings(keys, values, LENGTHS, empty)
    out = decode(backend, q, *ring, jnp.int32(LENGTHS), rule)
    assert distance(out[:, None], truth(q, keys, values, LENGTHS - 1, rule)) < 1e-6
    assert not np.asarray(out[0]).any()


@pytest.mark.parametrize("programs", [1, 4, 1000])
def test_a_ring_in_any_number_of_shares(programs, operands, distance):
    q, keys, values = operands(len(LENGTHS), 1, 2, 1, 32, TOKENS)
    rule, blocks = AttentionRule(0.2, window=60), Blocks(16, 16, threads=64, programs=programs)
    ring = rings(keys, values, LENGTHS)
    out = decode("pallas", q, *ring, jnp.int32(LENGTHS), rule, blocks=blocks)
    assert distance(out[:, None], truth(q, keys, values, LENGTHS - 1, rule)) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_rings(backend, dtype, operands, normal, distance):
    """Only the weights are rounded to the dtype of the cache."""
    lengths = LENGTHS[4:]
    q, keys, values = operands(len(lengths), 1, 4, 2, 64, TOKENS, dtype)
    rule, ring = made("all", 64, 4, normal), rings(keys, values, lengths, empty=99)
    out = decode(backend, q, *ring, jnp.int32(lengths), rule, blocks=None)
    rounding = float(jnp.finfo(dtype).eps) / 2
    assert distance(out[:, None], truth(q, keys, values, lengths - 1, rule)) < rounding


def test_several_queries_of_a_ring_in_the_reference(operands, normal, distance):
    """The ring holds the windows of all of them."""
    starts, rule = LENGTHS[5:] - 5, made("window-49", 32, 4, normal)
    q, keys, values = operands(len(starts), 5, 4, 2, 32, TOKENS)
    ring = rings(keys, values, starts + 5, empty=99)
    out = jax.jit(lambda *a: reference.prefill(*a, ring=True))(q, *ring, jnp.int32(starts), rule)
    assert distance(out, truth(q, keys, values, starts, rule)) < 1e-6


def test_positions_of_the_tokens_of_a_ring():
    found = reference.ring_positions(jnp.array([-1, 0, 2, 3, 9], jnp.int32), 4)
    assert found.dtype == jnp.int32
    assert np.asarray(found[0] < 0).all() and np.asarray(found[1, 1:] < 0).all()
    assert found[1, 0] == 0 and found[2, :3].tolist() == [0, 1, 2] and found[2, 3] < 0
    assert found[3].tolist() == [0, 1, 2, 3] and found[4].tolist() == [8, 9, 6, 7]


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize(
    ("N", "K", "H", "normed", "name"),
    [
        (4, 2, 64, False, "window-20"),
        (7, 1, 80, True, "window-64"),
        (20, 1, 40, False, "window-1"),
        (4, 2, 512, True, "all"),
    ],
)
def test_new_tokens(ring, rotates, N, K, H, normed, name, operands, normal, distance):
    """They are normed or not, rotated or not, attended to and stored, with nothing else."""
    lengths = LENGTHS[1:] if ring else LENGTHS[1:5]
    B, rule, R = len(lengths), made(name, H, N, normal), H // 4
    q, keys, values = operands(B, 1, N, K, H, TOKENS)
    k, v, angles = normal(B, K, H, seed=5), normal(B, K, H, seed=6), normal(B, R, seed=7)
    scales = 1 + 0.1 * normal(H, seed=8), 1 + 0.1 * normal(H, seed=9)
    norms = (scales, (1e-3, 0.1)) if normed else None
    cos, sin = (np.cos(angles), np.sin(angles)) if rotates else (None, None)
    new = NewTokens(k, v, cos, sin, False, norms)

    def prepared(heads, i):
        heads = np.float64(heads)
        if normed:
            mean = (heads**2).mean(axis=-1, keepdims=True)
            heads = heads / np.sqrt(mean + norms[1][i]) * scales[i]
        if rotates:
            a, b = heads[..., :R].copy(), heads[..., R : 2 * R].copy()
            c, s = np.float64(cos)[:, None], np.float64(sin)[:, None]
            heads = np.concatenate([a * c - b * s, b * c + a * s, heads[..., 2 * R :]], axis=-1)
        return heads

    every_key, every_value = np.array(keys), np.array(values)
    for b, length in enumerate(lengths):
        every_key[b, ..., length - 1], every_value[b, :, length - 1] = prepared(k, 1)[b], v[b]
    exact = truth(prepared(q[:, 0], 0)[:, None], every_key, every_value, lengths - 1, rule)
    before, after = rings(keys, values, lengths - 1), rings(every_key, every_value, lengths)

    def call(q, keys, values, lengths, new):
        how = dict(target=TARGET, blocks=SMALL, ring=ring)
        new = NewTokens(*new, False, norms)
        return decode_attention(q, keys, values, lengths, rule, new=new, **how)

    operands = *map(jnp.asarray, before), jnp.int32(lengths), new[:4]
    out, found_keys, found_values = jax.jit(call)(q[:, 0], *operands)
    assert distance(out[:, None], exact) < 1e-6
    np.testing.assert_allclose(found_keys, after[0], atol=1e-6)  # of size 1, in float32
    np.testing.assert_array_equal(found_values, after[1])


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_rings_lower_to_triton(target, dtype):
    """With sizes of the target, of tokens that rotate and that do not."""
    of, (B, N, K, H, S) = jax.ShapeDtypeStruct, (2, 14, 2, 80, 576)
    arrays = of((B, N, H), dtype), of((B, K, H, S), dtype), of((B, K, S, H), dtype)
    rule = AttentionRule(0.1, window=512, soft_cap=30.0, sinks_N=of((N,), jnp.float32))
    new, angle = of((B, K, H), dtype), of((B, H // 2), jnp.float32)
    for angles in ((None, None), (angle, angle)):

        def call(q, keys, values, lengths, rule, *new):
            tokens, how = NewTokens(*new, interleaved=False), dict(target=target, ring=True)
            return decode_attention(q, keys, values, lengths, rule, new=tokens, **how)

        operands = *arrays, of((B,), jnp.int32), rule, new, new, *angles
        assert lowered_to_triton(target, call, *operands).count("__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("window", "message"),
    [
        (None, "a ring of 32 slots needs a rule with a window, got window=None"),
        (33, "1 new tokens with a window of 33 see 33 slots, the ring has 32"),
    ],
)
def test_a_ring_without_room_for_the_window(backend, window, message):
    rule = AttentionRule(0.1, window=window)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *a: decode(backend, a[0][:, None], *a[1:], rule), *shapes())


def test_a_ring_that_blocks_do_not_divide():
    arrays = shapes(keys=(2, 2, 64, 40), values=(2, 2, 40, 64))
    rule = AttentionRule(0.1, window=9)
    with pytest.raises(NotImplementedError, match="a ring of 40 slots: .* a multiple of 16"):
        jax.eval_shape(lambda *a: decode("pallas", a[0][:, None], *a[1:], rule), *arrays)
    jax.eval_shape(lambda *a: decode("xla", a[0][:, None], *a[1:], rule), *arrays)


def test_one_angle_without_the_other():
    kv, angle = jax.ShapeDtypeStruct((2, 2, 64), jnp.float32), jnp.ones((2, 8))
    for cos, sin, message in (
        (angle, None, "cos_BR without sin_BR"),
        (None, angle, "sin_BR without cos_BR"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda *a, cos=cos, sin=sin: decode_attention(
                    *a[:4],
                    AttentionRule(0.1),
                    target=TARGET,
                    new=NewTokens(*a[4:], cos, sin, True),
                ),
                *shapes(),
                kv,
                kv,
            )
