"""The planes that kernels read, beyond the round trips of `test_qtensor`."""

import dataclasses

import numpy as np
import pytest

import pallas_kernels.packing
import rocmforge_jax.cpp.repack
from rocmforge_jax import formats
from rocmforge_jax.formats.packing import GROUP
from rocmforge_jax.quant import QTensor, dequantize, repack, word_packed

pytestmark = pytest.mark.core


def every_code_under_every_byte_of_scale(name, scale_bytes):
    """Blocks uint8 [256, block bytes] whose scale bytes are all equal."""
    nibbles = np.tile(np.arange(16, dtype=np.uint8) * 0x11, (formats.get(name).block // 32, 1))
    codes = np.tile(nibbles.reshape(1, -1), (256, 1))
    return np.concatenate(
        [np.repeat(np.arange(256, dtype=np.uint8)[:, None], scale_bytes, axis=1), codes], axis=1
    )


@pytest.mark.parametrize(("name", "scale_bytes"), [("MXFP4", 1), ("NVFP4", 4)])
def test_small_floats_are_the_same_in_formats_and_in_kernels(name, scale_bytes):
    """E2M1, E8M0 and E4M3 are written twice, because neither package imports the other."""
    rows = every_code_under_every_byte_of_scale(name, scale_bytes)
    packed = np.asarray(dequantize(QTensor.from_bytes(rows, name, layout="groups")))
    expected = np.asarray(formats.dequantize(rows, name))
    assert np.unique(expected).size > 256
    np.testing.assert_array_equal(packed.view(np.uint32), expected.view(np.uint32))


def test_groups_have_one_size():
    assert GROUP == pallas_kernels.packing.GROUP == rocmforge_jax.cpp.repack.GROUP


def test_a_type_without_a_packing_is_not_supported():
    for function in (word_packed.packing, repack.blocks_of):
        with pytest.raises(NotImplementedError, match="IQ3_S"):
            function(formats.get("IQ3_S"))


def test_a_packing_that_two_formats_share_is_listed_once():
    before, q4_0 = word_packed.packings(), formats.get("Q4_0")
    twin = dataclasses.replace(q4_0, name="TWIN", ggml_id=None)
    formats.register(twin)
    try:
        assert word_packed.packing(twin) == word_packed.packing(q4_0) in before
        assert word_packed.packings() == before
    finally:
        formats.unregister(twin)
    assert len(before) == len(set(before)) == 16


@pytest.mark.parametrize(
    ("name", "span"), [("Q4_0", 1), ("Q2_0", 2), ("Q4_K", 8), ("MXFP4", 1), ("NVFP4", 1)]
)
def test_groups_of_a_block_share_its_scale(name, span):
    assert word_packed.packing(formats.get(name)).span == span
