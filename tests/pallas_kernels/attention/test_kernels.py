"""Attention kernels, and their plain form, against softmax(q k) v in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import blocks, decode_attention, prefill_attention
from pallas_kernels.attention.blocks import Blocks
from pallas_kernels.attention.decode import NewTokens
from pallas_kernels.qmatmul.activations import quantize_reference
from pallas_kernels.targets import INTERPRET, Target
from tests.pallas_kernels.conftest import TARGET, lowered_to_triton

pytestmark = pytest.mark.core

IMPLEMENTATIONS = ("triton", "xla")
#: Blocks of 16 slots and 16 rows: small shapes have many of both.
SMALL = Blocks(slots=16, rows=16, threads=64, programs=24)
GPUS = [
    Target("cuda", "9.0"),
    *(Target("rocm", isa) for isa in ("gfx90a", "gfx942", "gfx1100", "gfx1201")),
]

_SETTINGS = ("scale", "target", "window", "soft_cap", "implementation", "blocks")
decode_jit = jax.jit(decode_attention, static_argnames=_SETTINGS)
prefill_jit = jax.jit(prefill_attention, static_argnames=_SETTINGS)


def truth(
    q_BTNH, keys_BKHS, values_BKSH, starts, *, scale, window=None, soft_cap=None, sinks_N=None
):
    """[B, T, N, H] in float64: one query after the other.

    Query t of sequence b is at slot starts[b] + t.
    """
    q, keys, values = (np.asarray(x).astype(np.float64) for x in (q_BTNH, keys_BKHS, values_BKSH))
    (B, T, N, _), K, out = q.shape, keys.shape[1], np.zeros(q.shape)
    for b, t, n in np.ndindex(B, T, N):
        position = int(starts[b]) + t
        seen = slice(0 if window is None else max(0, position - window + 1), max(0, position + 1))
        scores = scale * q[b, t, n] @ keys[b, n // (N // K), :, seen]
        scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
        logits = scores if sinks_N is None else np.append(scores, np.float64(sinks_N[n]))
        if scores.size:
            weights = np.exp(scores - logits.max())
            out[b, t, n] = (
                weights / np.exp(logits - logits.max()).sum() @ values[b, n // (N // K), seen]
            )
    return out


@pytest.fixture
def operands(normal):
    """(B, T, N, K, H, S, dtype) -> q [B, T, N, H] in float32, which dtype holds exactly, and keys
    and values in dtype.
    """

    def make(B, T, N, K, H, S, dtype=jnp.float32):
        def narrow(*shape, seed):
            return jnp.asarray(normal(*shape, seed=seed), dtype)

        return (
            narrow(B, T, N, H, seed=1).astype(jnp.float32),
            narrow(B, K, H, S, seed=2),
            narrow(B, K, S, H, seed=3),
        )

    return make


def decoded(q, keys, values, lengths, **settings):
    return decode_jit(q[:, 0], keys, values, jnp.int32(lengths), target=TARGET, **settings)[:, None]


def prefilled(q, keys, values, starts, **settings):
    return prefill_jit(q, keys, values, jnp.int32(starts), target=TARGET, **settings)


# Lengths on both sides of every border of a block of 16, nothing and everything.
LENGTHS = [0, 1, 15, 16, 17, 32, 33, 71, 80]
OPTIONS = {
    "plain": {},
    "window-1": dict(window=1),
    "window-20": dict(window=20),
    "soft-cap": dict(soft_cap=2.0),
    "all": dict(window=33, soft_cap=5.0, sinks=True),
    "sinks": dict(sinks=True),
}


def with_sinks(options, N, normal):
    """Sinks as large as scores, so that they matter."""
    options = dict(options)
    return options | dict(sinks_N=2 * normal(N, seed=4)) if options.pop("sinks", False) else options


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("N", "K", "H", "options"),
    [
        (2, 2, 64, "plain"),
        (4, 2, 80, "window-20"),
        (8, 2, 96, "soft-cap"),
        (14, 2, 128, "sinks"),
        (8, 1, 256, "all"),
        (20, 1, 40, "window-1"),  # two tiles of heads
    ],
)
def test_decode(implementation, N, K, H, options, operands, normal, distance):
    q, keys, values = operands(len(LENGTHS), 1, N, K, H, 80)
    settings = dict(scale=H**-0.5, **with_sinks(OPTIONS[options], N, normal))
    out = decoded(q, keys, values, LENGTHS, implementation=implementation, blocks=SMALL, **settings)
    assert out.dtype == q.dtype
    assert distance(out, truth(q, keys, values, np.array(LENGTHS) - 1, **settings)) < 1e-6
    assert not np.asarray(out[0]).any()


@pytest.mark.parametrize("programs", [1, 4, 6, 1000])
def test_decode_in_any_number_of_shares(programs, operands, distance):
    """One share, shares of several blocks, more shares than blocks are filled.

    The last block overhangs the cache.
    """
    q, keys, values = operands(2, 1, 2, 1, 32, 75)
    out = decoded(
        q,
        keys,
        values,
        [75, 18],
        scale=0.2,
        blocks=Blocks(16, rows=16, threads=64, programs=programs),
    )
    assert distance(out, truth(q, keys, values, [74, 17], scale=0.2)) < 1e-6


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
    ],
)
def test_decode_of_new_tokens(N, K, H, R, interleaved, normed, options, operands, normal, distance):
    """They are normed or not, rotated, attended to and stored; nothing else of the caches changes.

    At the first slot, borders of blocks, the last slot.
    """
    slots = np.array([0, 1, 15, 16, 31, 79])
    B, settings = len(slots), dict(scale=H**-0.5, **with_sinks(OPTIONS[options], N, normal))
    q, keys, values = operands(B, 1, N, K, H, 80)
    k, v, angles = normal(B, K, H, seed=5), normal(B, K, H, seed=6), normal(B, R, seed=7)
    norms = (
        ((1 + 0.1 * normal(H, seed=8), 1 + 0.1 * normal(H, seed=9)), (1e-3, 0.1))
        if normed
        else None
    )
    new = NewTokens(k, v, np.cos(angles), np.sin(angles), interleaved, norms)
    dirty = jnp.where(
        (np.arange(80) >= slots[:, None])[:, None, :, None], jnp.nan, values
    )  # from the new token's slot on

    def call(q, keys, values, lengths, *arrays):
        return decode_attention(
            q,
            keys,
            values,
            lengths,
            new=NewTokens(*arrays, interleaved, norms),
            target=TARGET,
            blocks=SMALL,
            **settings,
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
    assert (
        distance(
            out[:, None], truth(turn(q[:, 0], 0)[:, None], all_keys, all_values, slots, **settings)
        )
        < 1e-6
    )
    np.testing.assert_allclose(found_keys, all_keys, atol=1e-6)  # of size 1, rotated in float32
    for b, slot in enumerate(slots):
        np.testing.assert_array_equal(found_values[b, :, : slot + 1], all_values[b, :, : slot + 1])


def test_a_new_token_beyond_the_cache_is_not_stored(operands):
    q, keys, values = operands(1, 1, 2, 1, 32, 20)
    ones = jnp.ones((1, 1, 32), jnp.float32)
    new = NewTokens(ones, ones, jnp.ones((1, 8)), jnp.zeros((1, 8)), True)
    _, found_keys, found_values = jax.jit(
        lambda q, keys, values, lengths: decode_attention(
            q, keys, values, lengths, new=new, scale=0.1, target=TARGET
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
                scale=0.1,
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
            functools.partial(decode_attention, scale=0.1, target=TARGET, new=new), *shapes()
        )
    with pytest.raises(
        NotImplementedError, match="only the kernels give Activations and take new tokens"
    ):
        decode_shapes(shapes(), implementation="xla", activations="int16")


@pytest.mark.parametrize("mode", ["int16", "float"])
def test_what_decode_gives_to_products(mode, operands, distance):
    q, keys, values = operands(2, 1, 6, 2, 64, 80)
    plain = decoded(q, keys, values, [80, 18], scale=0.125)

    def call(q, keys, values, lengths):
        return decode_attention(
            q, keys, values, lengths, scale=0.125, target=TARGET, activations=mode
        )

    out, found = jax.jit(call)(q[:, 0], keys, values, jnp.int32([80, 18]))
    np.testing.assert_array_equal(out, plain[:, 0])
    expected = quantize_reference(out.reshape(2, -1), mode)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        # Words and sums are integers in "int16": equal. In "float" sums of 16 numbers of size 1 are
        # taken in another order.
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    with pytest.raises(
        NotImplementedError, match="heads of 80, only multiples of 32 can be quantised"
    ):
        decode_shapes(
            shapes(q=(2, 4, 80), keys=(2, 2, 80, 32), values=(2, 2, 32, 80)), activations="int16"
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("T", "N", "K", "H", "options"),
    [
        (1, 2, 2, 64, "plain"),
        (17, 4, 2, 80, "window-20"),
        (17, 7, 1, 32, "sinks"),
        (129, 4, 1, 96, "plain"),
        (129, 2, 1, 32, "all"),
        (5, 16, 2, 128, "soft-cap"),
        (17, 2, 1, 256, "window-1"),
    ],
)
def test_prefill(implementation, T, N, K, H, options, operands, normal, distance):
    """New tokens from the first slot on, within a block, at its border, and up to the last slot,
    which no block ends at.
    """
    S = T + 37
    starts = [0, 7, 16, 37]
    q, keys, values = operands(len(starts), T, N, K, H, S)
    settings = dict(scale=H**-0.5, **with_sinks(OPTIONS[options], N, normal))
    out = prefilled(
        q, keys, values, starts, implementation=implementation, blocks=SMALL, **settings
    )
    assert out.dtype == q.dtype
    assert distance(out, truth(q, keys, values, starts, **settings)) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_caches(implementation, dtype, operands, distance):
    """Operands are exact in the cache's dtype: only the weights are rounded to it, once, in
    relation to their size.
    """
    q, keys, values = operands(2, 20, 8, 2, 64, 64, dtype)
    settings, rounding = (
        dict(scale=0.125, implementation=implementation),
        float(jnp.finfo(dtype).eps) / 2,
    )
    out = prefilled(q, keys, values, [0, 44], **settings)
    assert out.dtype == jnp.float32
    assert distance(out, truth(q, keys, values, [0, 44], scale=0.125)) < rounding
    last = q[:, -1:]
    assert (
        distance(
            decoded(last, keys, values, [20, 64], **settings),
            truth(last, keys, values, [19, 63], scale=0.125),
        )
        < rounding
    )
    assert prefilled(q.astype(dtype), keys, values, [0, 44], **settings).dtype == dtype
    assert decoded(last.astype(dtype), keys, values, [20, 64], **settings).dtype == dtype


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_query_that_sees_nothing_gets_zeros(implementation, operands, normal, distance):
    """Tokens at negative positions, and a sequence without tokens.

    With a sink too, which has no value.
    """
    q, keys, values = operands(2, 4, 2, 1, 32, 20)
    for sinks_N in (None, normal(2)):
        settings = dict(scale=0.2, sinks_N=sinks_N)
        out = prefilled(q, keys, values, [-2, -9], implementation=implementation, **settings)
        assert not np.asarray(out)[0, :2].any() and not np.asarray(out)[1].any()
        assert distance(out, truth(q, keys, values, [-2, -9], **settings)) < 1e-6
        assert not np.asarray(
            decoded(q, keys, values, [0, 0], implementation=implementation, **settings)
        ).any()


def test_what_unfilled_slots_hold_never_counts(operands, distance):
    q, keys, values = operands(2, 3, 2, 1, 32, 40)
    unfilled = np.arange(40) >= np.array([18, 33])[:, None]
    dirty_keys = jnp.where(unfilled[:, None, None], jnp.nan, keys)
    dirty_values = jnp.where(unfilled[:, None, :, None], jnp.nan, values)
    for window in (None, 5):
        settings = dict(scale=0.2, window=window)
        out = prefilled(q, dirty_keys, dirty_values, [15, 30], blocks=SMALL, **settings)
        assert distance(out, truth(q, keys, values, [15, 30], **settings)) < 1e-6
        out = decoded(q, dirty_keys, dirty_values, [18, 33], blocks=SMALL, **settings)
        assert distance(out, truth(q[:, :1], keys, values, [17, 32], **settings)) < 1e-6


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(implementation, operands, distance):
    q, keys, values = operands(1, 4, 2, 1, 64, 40)
    for soft_cap in (None, 30.0):
        settings = dict(scale=1e3, soft_cap=soft_cap)
        expected = truth(q, keys, values, [36], **settings)
        # Scores of 1e4 are known to 1e-3 in float32.
        assert (
            distance(
                prefilled(
                    q, keys, values, [36], implementation=implementation, blocks=SMALL, **settings
                ),
                expected,
            )
            < 1e-3
        )
        last = decoded(
            q[:, -1:], keys, values, [40], implementation=implementation, blocks=SMALL, **settings
        )
        assert distance(last, expected[:, -1:]) < 1e-3


@pytest.mark.parametrize(
    "target", [*GPUS, Target("rocm", "gfx1300"), Target("cuda", "12.0"), INTERPRET], ids=str
)
@pytest.mark.parametrize("table", ["DECODE", "PREFILL"])
def test_every_target_has_blocks(target, table):
    for itemsize in (2, 4):
        for width in (1, 64, 65, 80, 128, 129, 256):
            chosen = blocks.chosen(getattr(blocks, table), target, itemsize, width)
            assert (
                1 <= chosen.warps(target)
                and chosen.warps(target) * target.wave == chosen.threads <= 1024
            )
            assert all(
                size >= 16 and size & (size - 1) == 0
                for size in (chosen.slots, chosen.rows, chosen.threads)
            )


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    ("function", "q", "kernels"), [(decode_jit, (2, 14, 80), 2), (prefill_jit, (2, 19, 14, 80), 1)]
)
def test_kernels_lower_to_triton(target, dtype, function, q, kernels):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in (q, (2, 2, 80, 100), (2, 2, 100, 80))]
    at, sinks_N = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((14,), jnp.float32)

    def run(*arrays, sinks_N):
        return function(
            *arrays, sinks_N=sinks_N, scale=0.1, window=50, soft_cap=30.0, target=target
        )

    assert (
        lowered_to_triton(target, run, *arrays, at, sinks_N=sinks_N).count("__gpu$xla.gpu.triton")
        == kernels
    )


def shapes(*, q=(2, 4, 64), keys=(2, 2, 64, 32), values=(2, 2, 32, 64), at=(2,), dtype=jnp.float32):
    return [jax.ShapeDtypeStruct(shape, dtype) for shape in (q, keys, values)] + [
        jax.ShapeDtypeStruct(at, jnp.int32)
    ]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(q=(2, 64)), r"q_BNH needs 3 axes, got 2: \[2, 64\]"),
        (dict(keys=(2, 64, 32)), r"keys_BKHS needs 4 axes, got 3"),
        (dict(q=(3, 4, 64)), "axis B is 3 in q_BNH, 2 in keys_BKHS"),
        (dict(q=(2, 4, 32)), "axis H is 32 in q_BNH, 64 in keys_BKHS"),
        (dict(values=(2, 2, 31, 64)), "axis S is 32 in keys_BKHS, 31 in values_BKSH"),
        (dict(values=(2, 1, 32, 64)), "axis K is 2 in keys_BKHS, 1 in values_BKSH"),
        (dict(at=(3,)), "axis B is 2 in q_BNH, 3 in lengths_B"),
        (dict(q=(2, 5, 64)), "q_BNH has 5 heads, keys_BKHS has 2: heads must be a multiple"),
        (dict(q=(2, 0, 64)), r"q_BNH has an empty axis N: \[2, 0, 64\]"),
        (dict(dtype=jnp.int8), "q_BNH must hold floating-point numbers, got int8"),
    ],
)
def test_wrong_shapes(implementation, wrong, message):
    with pytest.raises(ValueError, match=message):
        decode_shapes(shapes(**wrong), implementation=implementation)


def decode_shapes(arrays, *, target=TARGET, scale=0.1, sinks_N=None, **settings):
    call = functools.partial(decode_attention, scale=scale, target=target, **settings)
    return jax.eval_shape(
        lambda *arrays: call(*arrays[:4], sinks_N=None if sinks_N is None else arrays[4]),
        *arrays,
        sinks_N,
    )


def test_wrong_operands_of_prefill():
    q, keys, values, starts = shapes(q=(2, 3, 4, 64))
    call = functools.partial(prefill_attention, scale=0.1, target=TARGET)
    assert jax.eval_shape(call, q, keys, values, starts).shape == q.shape
    with pytest.raises(ValueError, match="q_BTNH needs 4 axes, got 3"):
        jax.eval_shape(call, shapes()[0], keys, values, starts)
    with pytest.raises(ValueError, match="axis B is 2 in q_BTNH, 4 in starts_B"):
        jax.eval_shape(call, q, keys, values, shapes(at=(4,))[3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scale=float("nan")), "scale must be a finite number, got nan"),
        (dict(window=0), "window must be a positive integer or None, got 0"),
        (dict(window=2.5), "window must be a positive integer or None, got 2.5"),
        (dict(soft_cap=0.0), "soft_cap must be a positive number or None, got 0.0"),
        (dict(implementation="cuda"), 'implementation must be "triton" or "xla", got \'cuda\''),
        (
            dict(sinks_N=jax.ShapeDtypeStruct((5,), jnp.float32)),
            "axis N is 4 in q_BNH, 5 in sinks_N",
        ),
        (
            dict(sinks_N=jax.ShapeDtypeStruct((4,), jnp.int32)),
            "sinks_N must hold floating-point numbers, got int32",
        ),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        decode_shapes(shapes(), **settings)


def test_wrong_dtypes():
    q, keys, values, lengths = shapes()
    with pytest.raises(ValueError, match="keys_BKHS is float32, values_BKSH is bfloat16"):
        decode_shapes([q, keys, shapes(dtype=jnp.bfloat16)[2], lengths])
    with pytest.raises(ValueError, match="lengths_B must hold integers, got float32"):
        decode_shapes([q, keys, values, jax.ShapeDtypeStruct((2,), jnp.float32)])


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (
            dict(q=(2, 4, 288), keys=(2, 2, 288, 32), values=(2, 2, 32, 288)),
            {},
            "head width 288: attention kernels hold at most 256",
        ),
        (dict(dtype=jnp.float8_e4m3fn), {}, "q in float8_e4m3fn: attention kernels know float32"),
        (
            dict(keys=(2, 2, 64, 2**23), values=(2, 2, 2**23, 64)),
            {},
            r"keys of shape \[2, 2, 64, 8388608\]: .* at most 2147483647",
        ),
        (
            dict(
                q=(2**15, 32, 256),
                keys=(2**15, 1, 256, 128),
                values=(2**15, 1, 128, 256),
                at=(2**15,),
            ),
            dict(blocks=Blocks(16, rows=32, threads=64, programs=2**18)),
            r"the partial sums of shape \[32768, 32, 256, 8\]: .* at most 2147483647",
        ),
        ({}, dict(target=None), "attention kernels run on GPUs"),
    ],
)
def test_what_the_kernels_refuse_and_xla_does_not(arrays, settings, message):
    arrays = shapes(**arrays)
    with pytest.raises(NotImplementedError, match=message):
        decode_shapes(arrays, **settings)
    assert decode_shapes(arrays, implementation="xla", **settings).shape == arrays[0].shape
