"""Operands and settings that are refused."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import (
    AttentionRule,
    decode_attention,
    prefill_attention,
    reference,
)
from pallas_kernels.attention.blocks import Blocks
from tests.pallas_kernels.attention.cases import BACKENDS, shapes
from tests.pallas_kernels.conftest import TARGET

pytestmark = pytest.mark.core

RULE = AttentionRule(0.1)


def decode_shapes(arrays, rule=RULE, *, backend="pallas", target=TARGET, **how):
    def call(*operands):
        if backend == "xla":
            return reference.decode(*operands)
        return decode_attention(*operands, target=target, **how)

    return jax.eval_shape(call, *arrays, rule)


@pytest.mark.parametrize("backend", BACKENDS)
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
def test_wrong_shapes(backend, wrong, message):
    with pytest.raises(ValueError, match=message):
        decode_shapes(shapes(**wrong), backend=backend)


def test_wrong_operands_of_prefill():
    def call(*operands):
        return jax.eval_shape(
            lambda *arrays: prefill_attention(*arrays, RULE, target=TARGET), *operands
        )

    q, keys, values, starts = shapes(q=(2, 3, 4, 64))
    assert call(q, keys, values, starts).shape == q.shape
    with pytest.raises(ValueError, match="q_BTNH needs 4 axes, got 3"):
        call(shapes()[0], keys, values, starts)
    with pytest.raises(ValueError, match="axis B is 2 in q_BTNH, 4 in starts_B"):
        call(q, keys, values, shapes(at=(4,))[3])


def test_wrong_masks():
    def call(*seen):
        return jax.eval_shape(
            lambda *arrays: reference.attend(*arrays, RULE), *shapes(q=(2, 3, 4, 64))[:3], *seen
        )

    assert call(jax.ShapeDtypeStruct((2, 3, 32), jnp.bool_)).shape == (2, 3, 4, 64)
    with pytest.raises(ValueError, match="seen_BTS must hold bool, got float32"):
        call(jax.ShapeDtypeStruct((2, 3, 32), jnp.float32))
    with pytest.raises(ValueError, match="axis S is 32 in keys_BKHS, 31 in seen_BTS"):
        call(jax.ShapeDtypeStruct((2, 3, 31), jnp.bool_))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(scale=float("nan")), "scale must be a finite number, got nan"),
        (dict(window=0), "window must be a positive integer or None, got 0"),
        (dict(window=2.5), "window must be a positive integer or None, got 2.5"),
        (dict(window=8, causal=False), "window=8 with causal=False must be odd"),
        (dict(chunk=0), "chunk must be a positive integer or None, got 0"),
        (dict(chunk=7, causal=False), "chunk=7 needs causal=True, got causal=False"),
        (dict(soft_cap=0.0), "soft_cap must be a positive number or None, got 0.0"),
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
def test_wrong_rules(backend, settings, message):
    with pytest.raises(ValueError, match=message):
        rule = AttentionRule(**dict(scale=0.1) | settings)
        decode_shapes(shapes(), rule, backend=backend)


def test_chunks_are_left_to_the_reference():
    rule, q = AttentionRule(0.1, chunk=8), jax.ShapeDtypeStruct((2, 3, 4, 64), jnp.float32)
    with pytest.raises(NotImplementedError, match="chunk=8: attention kernels"):
        decode_shapes(shapes(), rule)
    with pytest.raises(NotImplementedError, match="chunk=8: attention kernels"):
        jax.eval_shape(
            lambda *arrays: prefill_attention(*arrays, rule, target=TARGET), q, *shapes()[1:]
        )
    assert decode_shapes(shapes(), rule, backend="xla").shape == (2, 4, 64)


def test_one_token_with_a_window_to_both_sides_is_left_to_others():
    """The decode kernel refuses it; the prefill kernel and the reference compute it."""
    rule, q = AttentionRule(0.1, False, 7), jax.ShapeDtypeStruct((2, 1, 4, 64), jnp.float32)
    with pytest.raises(NotImplementedError, match="window=7 with causal=False"):
        decode_shapes(shapes(), rule)
    assert decode_shapes(shapes(), rule, backend="xla").shape == (2, 4, 64)
    made = jax.eval_shape(
        lambda *arrays: prefill_attention(*arrays, rule, target=TARGET), q, *shapes()[1:]
    )
    assert made.shape == q.shape


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
            dict(q=(2, 4, 544), keys=(2, 2, 544, 32), values=(2, 2, 32, 544)),
            {},
            "head width 544: attention kernels hold at most 512",
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
def test_what_the_kernels_refuse_and_the_reference_does_not(arrays, settings, message):
    arrays = shapes(**arrays)
    with pytest.raises(NotImplementedError, match=message):
        decode_shapes(arrays, **settings)
    assert decode_shapes(arrays, backend="xla").shape == arrays[0].shape
