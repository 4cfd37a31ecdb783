"""Codes of packed weights in registers."""

import itertools

import pytest

from pallas_kernels.qmatmul import codes
from pallas_kernels.targets import Target
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import PACKED_TYPES

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("names", "platform", "turn"),
    [
        (["IQ4_XS", "MXFP4"], "cuda", True),
        (["IQ4_NL"], "rocm", False),
        (["IQ4_NL", "Q4_0"], "cuda", False),
        (["NVFP4"], "cuda", False),
    ],
)
def test_bytes_are_in_turn_where_all_weights_have_tables(names, platform, turn):
    """And one scale a group; AMD's GPUs look bytes up in their order."""
    assert (
        codes.come_in_turn(
            [word_packed.packing(formats.get(name)) for name in names], Target(platform)
        )
        == turn
    )


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_what_is_taken_off_a_code_is_exact(name):
    """Times a scale it has at most 24 bits, so that a fused multiply-add of the code that is too
    large rounds once.
    """
    packing = word_packed.packing(formats.get(name))
    signed = packing.table is not None or packing.bits == 8
    bits, offset = (8, 128) if signed else (packing.bits, packing.offset)
    bits_of_scale = {"d": 11, "int8": 18 if name == "Q6_K" else 16, "e4m3": 4}
    for position, byte in itertools.product(range(8), range(4)):
        place = codes.place(packing, position, byte)
        assert 0 <= place <= 23 - bits
        if packing.minimum or packing.scale == "e8m0":
            continue  # taken off before it is multiplied
        above = 2 ** (23 - place) + offset
        assert (above // (above & -above)).bit_length() + bits_of_scale[packing.scale] <= 24
