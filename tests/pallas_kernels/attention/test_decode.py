"""Decode against softmax(q k) v in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule, decode_attention
from pallas_kernels.attention.blocks import Blocks
from pallas_kernels.qmatmul.activations import quantize_reference
from tests.pallas_kernels.attention.cases import (
    BACKENDS,
    SMALL,
    decoded,
    rule_of,
    shapes,
    truth,
)
from tests.pallas_kernels.conftest import TARGET

pytestmark = pytest.mark.core

# Lengths on both sides of every border of a block of 16, nothing and everything.
LENGTHS = [0, 1, 15, 16, 17, 32, 33, 71, 80]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("N", "K", "H", "options"),
    [
        (2, 2, 64, "plain"),
        (4, 2, 80, "window-20"),
        (8, 2, 96, "soft-cap"),
        (14, 2, 128, "sinks"),
        (8, 1, 256, "all"),
        (20, 1, 40, "window-1"),  # two tiles of heads
        (4, 2, 512, "all"),
        (2, 1, 320, "soft-cap"),
        (4, 2, 64, "not-causal-all"),
    ],
)
def test_decode(backend, N, K, H, options, operands, normal, distance):
    q, keys, values = operands(len(LENGTHS), 1, N, K, H, 80)
    rule = rule_of(options, H**-0.5, N, normal)
    out = decoded(backend, q, keys, values, LENGTHS, rule)
    assert out.dtype == q.dtype
    assert distance(out, truth(q, keys, values, np.array(LENGTHS) - 1, rule)) < 1e-6
    assert not np.asarray(out[0]).any()


@pytest.mark.parametrize("programs", [1, 4, 6, 1000])
def test_decode_in_any_number_of_shares(programs, operands, distance):
    """One share, shares of several blocks, more shares than blocks are filled.

    The last block overhangs the cache.
    """
    q, keys, values = operands(2, 1, 2, 1, 32, 75)
    rule, blocks = AttentionRule(0.2), Blocks(16, rows=16, threads=64, programs=programs)
    out = decoded("pallas", q, keys, values, [75, 18], rule, blocks)
    assert distance(out, truth(q, keys, values, [74, 17], rule)) < 1e-6


@pytest.mark.parametrize("mode", ["int16", "float"])
def test_decode_quantises_its_result_for_products(mode, operands):
    q, keys, values = operands(2, 1, 6, 2, 64, 80)
    rule = AttentionRule(0.125)
    plain = decoded("pallas", q, keys, values, [80, 18], rule, blocks=None)

    def call(q, keys, values, lengths):
        return decode_attention(q, keys, values, lengths, rule, target=TARGET, activations=mode)

    out, found = jax.jit(call)(q[:, 0], keys, values, jnp.int32([80, 18]))
    np.testing.assert_array_equal(out, plain[:, 0])
    expected = quantize_reference(out.reshape(2, -1), mode)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        # Words and sums are integers in "int16": equal. In "float" sums of 16 numbers of size 1 are
        # taken in another order.
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    narrow = shapes(q=(2, 4, 80), keys=(2, 2, 80, 32), values=(2, 2, 32, 80))
    with pytest.raises(NotImplementedError, match="heads of 80, only multiples of 32"):
        jax.eval_shape(call, *narrow)


def test_decode_never_counts_unfilled_slots(operands, distance):
    q, keys, values = operands(2, 1, 2, 1, 32, 40)
    unfilled = np.arange(40) >= np.array([18, 33])[:, None]
    dirty_keys = jnp.where(unfilled[:, None, None], jnp.nan, keys)
    dirty_values = jnp.where(unfilled[:, None, :, None], jnp.nan, values)
    for window in (None, 5):
        rule = AttentionRule(0.2, window=window)
        out = decoded("pallas", q, dirty_keys, dirty_values, [18, 33], rule, SMALL)
        assert distance(out, truth(q, keys, values, [17, 32], rule)) < 1e-6
