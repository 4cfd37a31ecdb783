"""validate_attention_dims: every operand, every way to be wrong, both numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rocmforge_jax
from rocmforge_jax.nn import dot_product_attention, validate_attention_dims

pytestmark = pytest.mark.core

Q, KV, MASK = (2, 3, 8, 64), (2, 5, 4, 64), (2, 3, 5)


def refusal(q=Q, k=KV, v=KV, mask=MASK):
    with pytest.raises(ValueError) as error:
        validate_attention_dims(q, k, v, mask)
    return str(error.value)


@pytest.mark.parametrize("heads", [(8, 8), (8, 4), (8, 1), (7, 7), (7, 1), (14, 2)])
def test_heads_that_are_multiples_pass(heads):
    N, K = heads
    assert validate_attention_dims((2, 3, N, 64), (2, 5, K, 64), (2, 5, K, 64), MASK) is None
    assert validate_attention_dims([1, 1, N, 1], [1, 9, K, 1], [1, 9, K, 1]) is None


def test_arrays_abstract_arrays_and_traced_ones_are_taken():
    assert rocmforge_jax.validate_attention_dims is validate_attention_dims
    validate_attention_dims(
        np.zeros(Q), jnp.zeros(KV), jax.ShapeDtypeStruct(KV, jnp.bfloat16), np.zeros(MASK, bool)
    )
    with pytest.raises(ValueError, match="q has 8 heads, k has 3"):
        jax.eval_shape(
            validate_attention_dims,
            jnp.zeros(Q),
            *2 * [jax.ShapeDtypeStruct((2, 5, 3, 64), jnp.float32)],
        )


@pytest.mark.parametrize("operand", ["k", "v"])
@pytest.mark.parametrize(("axis", "what", "in_q"), [(0, "batch", 2), (3, "head width", 64)])
@pytest.mark.parametrize("size", [1, 128])
def test_batch_and_head_width_of_k_and_v_are_those_of_q(operand, axis, what, in_q, size):
    shape = (*KV[:axis], size, *KV[axis + 1 :])
    assert (
        refusal(**{operand: shape})
        == f"q has {what} {in_q}, {operand} has {size}: they must be equal"
    )


@pytest.mark.parametrize(
    ("axis", "what", "size", "other"), [(1, "length", 5, 6), (2, "heads", 4, 2), (2, "heads", 4, 8)]
)
def test_v_has_the_length_and_heads_of_k(axis, what, size, other):
    shape = (*KV[:axis], other, *KV[axis + 1 :])
    assert refusal(v=shape) == f"k has {what} {size}, v has {other}: they must be equal"


@pytest.mark.parametrize(("N", "K"), [(8, 3), (12, 5), (7, 2), (1, 2), (4, 8)])
def test_heads_that_do_not_divide(N, K):
    message = refusal((2, 3, N, 64), (2, 5, K, 64), (2, 5, K, 64))
    assert message == f"q has {N} heads, k has {K}: heads must be a multiple of KV heads"


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 2, 5), (2, 3, 4), (2, 5, 3)])
def test_a_mask_of_another_shape(shape):
    assert refusal(mask=shape) == f"mask has shape {list(shape)}, q and k need [2, 3, 5]"


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_mask_that_is_added_to_scores_is_no_mask_here(dtype):
    with pytest.raises(
        ValueError, match=f"mask must be bool, true where a query sees a slot, got {dtype}"
    ):
        dot_product_attention(np.zeros(Q), np.zeros(KV), np.zeros(KV), np.zeros(MASK, dtype))


@pytest.mark.parametrize(("operand", "right"), [("q", Q), ("k", KV), ("v", KV), ("mask", MASK)])
@pytest.mark.parametrize(
    "change", [lambda s: s[1:], lambda s: (1, *s), lambda s: ()], ids=["less", "more", "none"]
)
def test_another_rank(operand, right, change):
    shape = change(right)
    axes = (
        "3 axes [batch, queries, slots]"
        if operand == "mask"
        else "4 axes [batch, length, heads, head width]"
    )
    assert refusal(**{operand: shape}) == f"{operand} needs {axes}, got {len(shape)}: {list(shape)}"


@pytest.mark.parametrize(("operand", "right"), [("q", Q), ("k", KV), ("v", KV), ("mask", MASK)])
@pytest.mark.parametrize("size", [0, -1, -(2**63), True, 1.0, "4"])
def test_sizes_that_are_no_positive_integers(operand, right, size):
    for axis in range(len(right)):
        shape = (*right[:axis], size, *right[axis + 1 :])
        assert (
            refusal(**{operand: shape})
            == f"{operand} has a size that is not a positive integer: {list(shape)}"
        )


@pytest.mark.parametrize("operand", ["q", "k", "v"])
@pytest.mark.parametrize("shape", [(2**31, 1, 1, 1), (2, 2**16, 2**8, 64), (2**62, 2**62, 1, 2)])
def test_operands_that_overflow(operand, shape):
    elements = np.prod(np.array(shape, object))
    assert (
        refusal(**{operand: shape})
        == f"{operand} of shape {list(shape)} has {elements} elements, the limit is 2147483647"
    )


def test_scores_that_overflow():
    T, S = 2**15, 2**16
    message = re.escape(
        f"attention of {T} queries over {S} slots, 4 heads and batch 1 has {4 * T * S} scores, the"
        " limit is 2147483647"
    )
    with pytest.raises(ValueError, match=message):
        validate_attention_dims((1, T, 4, 32), (1, S, 1, 32), (1, S, 1, 32))


def test_attention_itself_checks(normal):
    with pytest.raises(
        ValueError, match="q has 5 heads, k has 2: heads must be a multiple of KV heads"
    ):
        dot_product_attention(normal(1, 1, 5, 32), normal(1, 1, 2, 32), normal(1, 1, 2, 32))
