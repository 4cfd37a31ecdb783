"""Sizes of programs."""

import pytest

from pallas_kernels.qmatmul import blocks
from pallas_kernels.targets import Target
from tests.pallas_kernels.qmatmul.operands import abstract_product

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("rows", "inputs", "pairs", "mode", "outputs"),
    [
        (2048, 768, 64, "int16", 8),
        (768, 2048, 8, "int8", 4),
        (768, 768, 1, "int16", 2),
        (2048, 768, 64, "float", 4),
        (14336, 4096, 1, "int16", 2),
    ],
)
@pytest.mark.parametrize("name", ["Q4_K", "Q2_K"])
def test_short_rows_are_taken_together(name, rows, inputs, pairs, mode, outputs):
    """Where there are many, and registers for it, which floats fill: starting a program takes as
    long as some rows of a step each.
    """
    product = abstract_product(name, rows, inputs, pairs)
    assert blocks.gemv(1, [product], mode, Target("cuda", "9.0")).rows == outputs


@pytest.mark.parametrize(
    ("inputs", "mode", "tile"),
    [
        (2880, "int16", (4, 32)),  # 3 steps of 32 groups for 90, not 2 of 64
        (2560, "int8", (4, 32)),
        (3584, "int16", (2, 64)),  # 112 groups: as many are read either way
        (4096, "int16", (2, 64)),
        (2880, "float", (2, 64)),
    ],
)
def test_steps_are_narrower_where_the_last_one_would_be_empty(inputs, mode, tile):
    product = abstract_product("MXFP4", 2880, inputs, 4)
    found = blocks.gemv(1, [product], mode, Target("cuda", "9.0"))
    assert (found.rows, found.groups) == tile
