"""Tensors are chosen by patterns of their names."""

import pytest

from rocmforge_jax.models.patterns import matching

pytestmark = pytest.mark.core

NAMES = ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_q.bias", "blk.11.ffn_up.weight")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, set()),
        (False, set()),
        (True, set(NAMES)),
        ("blk.*.attn_q", {"blk.0.attn_q.weight"}),
        ("blk.*.attn_q*", {"blk.0.attn_q.weight", "blk.0.attn_q.bias"}),
        (("token_embd", "blk.1?.*"), {"token_embd.weight", "blk.11.ffn_up.weight"}),
        ((), set()),
    ],
)
def test_names_that_match(patterns, expected):
    assert matching(patterns, NAMES) == expected


def test_a_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"'blk\.\*\.attn_k'.*'blk\.\*\.attn_q'"):
        matching("blk.*.attn_k", NAMES)


def test_a_pattern_of_another_type():
    with pytest.raises(TypeError, match="int"):
        matching([3], NAMES)
