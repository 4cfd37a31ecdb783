"""The quantisers of the K types and the small ones: ggml's bytes, dtypes, refusals."""

import re
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rocmforge_jax.formats import dequantize, get, quantize

pytestmark = pytest.mark.core

#: tools/make_quantizer_data.py makes it; it says which rows there are.
DATA = Path(__file__).resolve().parents[1] / "data" / "quantized.npz"
with np.load(DATA) as arrays:
    GGML = dict(arrays)
SOURCE = GGML.pop("source")


def in_their_places(rows, source):
    """Moves groups of ggml's IQ3_S, which it writes in the place of zeros that come before them."""
    blocks = rows.reshape(-1, get("IQ3_S").block_bytes).copy()
    nonzero = source.reshape(len(blocks), 8, 32).any(axis=2)
    for block, there in zip(blocks, nonzero, strict=True):
        for start, length in ((2, 64), (74, 32)):  # qs and signs
            field = block[start : start + length].reshape(8, -1)
            written = field[: there.sum()].copy()
            field[:] = 0
            field[there] = written
    return blocks.reshape(rows.shape)


AS_WRITTEN = GGML["IQ3_S"]
GGML["IQ3_S"] = in_their_places(AS_WRITTEN, SOURCE)


@pytest.mark.parametrize("name", GGML)
def test_bytes_equal_ggml(name):
    np.testing.assert_array_equal(quantize(SOURCE, name), GGML[name])


def test_groups_after_zeros_keep_their_place():
    """One outlier in the third group, which ggml's own bytes have lost."""
    (row,) = np.flatnonzero((GGML["IQ3_S"] != AS_WRITTEN).any(axis=1))
    assert np.flatnonzero(SOURCE[row]).tolist() == [77]
    theirs, ours = (
        np.asarray(dequantize(blocks[row], "IQ3_S")) for blocks in (AS_WRITTEN, GGML["IQ3_S"])
    )
    assert abs(ours[77] / SOURCE[row, 77] - 1) < 0.05 < abs(theirs[77] / SOURCE[row, 77] - 1)


@pytest.mark.parametrize("name", GGML)
def test_many_rows_give_the_bytes_of_one(name):
    """More blocks than are quantised at once, and another shape of the same blocks."""
    many = quantize(np.tile(SOURCE, (20, 1)).reshape(4, 75, 512), name)
    np.testing.assert_array_equal(
        many, np.tile(GGML[name], (20, 1)).reshape(4, 75, GGML[name].shape[-1])
    )


@pytest.mark.parametrize("name", GGML)
def test_no_rows_and_no_elements_are_no_bytes(name):
    assert quantize(SOURCE[:0], name).shape == (0, GGML[name].shape[1])
    assert quantize(SOURCE[:, :0], name).shape == (len(SOURCE), 0)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "IQ4_XS", "Q8_0"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("asarray", [np.asarray, jnp.asarray])
def test_narrow_floats_are_cast(name, dtype, asarray):
    narrow = SOURCE[:2].astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    np.testing.assert_array_equal(
        quantize(asarray(narrow), name), quantize(narrow.astype(np.float32), name)
    )


#: Most root mean square error of normal numbers, in their deviation. A wrong scale or order of
#: codes gives a multiple.
ERRORS = {
    "Q2_K": 0.3,
    "Q3_K": 0.2,
    "Q4_K": 0.08,
    "Q5_K": 0.04,
    "Q6_K": 0.02,
    "Q8_K": 0.01,
    "IQ2_S": 0.28,
    "IQ3_XXS": 0.23,
    "IQ3_S": 0.17,
    "IQ4_NL": 0.09,
    "IQ4_XS": 0.09,
    "NVFP4": 0.12,
}


@pytest.mark.parametrize("name", ERRORS)
def test_values_come_back(name):
    values = np.random.default_rng(4).normal(size=(7, 1536)).astype(np.float32)
    back = np.asarray(dequantize(quantize(values, name), name))
    assert np.sqrt(np.square(back - values).mean()) < ERRORS[name]


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q1_0", "Q2_0"])
def test_types_of_few_values_hold_them_exactly(name):
    values = np.random.default_rng(6).choice([-0.375, 0.375], (3, 768)).astype(np.float32)
    if name != "Q1_0":
        values[:, 5::7] = 0
    np.testing.assert_array_equal(np.asarray(dequantize(quantize(values, name), name)), values)


@pytest.mark.parametrize(
    "name", [name for name in GGML if get(name).block == 256 and name != "Q8_K"]
)
@pytest.mark.parametrize("value", [1e10, -1e14, 3e38])
def test_values_beyond_float16_scales_are_refused(name, value):
    shown = re.escape(f"{abs(value):g}")
    values = np.zeros((1, 512), np.float32)
    values[0, 300] = value
    with pytest.raises(ValueError, match=rf"values up to {shown} .* {name}: its float16 .* 65504"):
        quantize(values, name)


def test_values_beyond_nvfp4_are_refused():
    with pytest.raises(ValueError, match="values up to 3000 .* NVFP4, which ends at 2688"):
        quantize(np.full((1, 64), 3000, np.float32), "NVFP4")


@pytest.mark.parametrize("name", GGML)
def test_nan_is_refused_with_its_count(name):
    values = SOURCE.copy()
    values[1, 3] = np.nan
    with pytest.raises(ValueError, match=f"1 of {values.size} values are NaN .* {name}"):
        quantize(values, name)


def test_a_row_of_part_of_a_block_is_refused():
    with pytest.raises(ValueError, match="a Q4_K row is whole blocks of 256 elements, got 576"):
        quantize(np.zeros((2, 576), np.float32), "Q4_K")
