"""The NumPy quantisers: ggml's bytes, zero blocks, extremes, refusals."""

import re

import gguf
import numpy as np
import pytest

from rocmforge_jax.formats import dequantize, quantize

pytestmark = pytest.mark.core

GGML = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 MXFP4".split()
BLOCKS = [*GGML[2:], "MXFP6_E2M3", "MXFP6_E3M2"]
HALF_SCALED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0".split()


@pytest.mark.parametrize("name", GGML)
def test_bytes_equal_ggml(name, reference):
    with np.load(reference / "dequant" / f"{name.lower()}.npz") as arrays:
        np.testing.assert_array_equal(quantize(arrays["source"], name), arrays["quantized_bytes"])


@pytest.mark.parametrize("name", GGML)
def test_leading_axes_stay_and_each_row_is_on_its_own(name, reference):
    with np.load(reference / "dequant" / f"{name.lower()}.npz") as arrays:
        source, expected = (
            np.tile(arrays[key], (4, 1))[:4] for key in ("source", "quantized_bytes")
        )
    np.testing.assert_array_equal(
        quantize(source.reshape(2, 1, 2, 1024), name), expected.reshape(2, 1, 2, -1)
    )
    np.testing.assert_array_equal(quantize(source[3], name), expected[3])
    assert quantize(source[:0], name).shape == (0, expected.shape[1])


def test_many_rows_give_the_bytes_of_one(reference):
    """More blocks than the search takes at once."""
    with np.load(reference / "dequant" / "q5_1.npz") as arrays:
        source, expected = arrays["source"], arrays["quantized_bytes"]
    np.testing.assert_array_equal(
        quantize(np.tile(source, (40, 1)), "Q5_1"), np.tile(expected, (40, 1))
    )


def test_f32_is_the_bytes_themselves():
    values = np.array([[1.5, -0.0, 1e-45, 3e38]], np.float32)
    np.testing.assert_array_equal(quantize(values, "F32"), values.view(np.uint8))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-38])
def test_zero_and_vanishing_blocks_read_as_nearly_zero(name, value):
    values = np.asarray(dequantize(quantize(np.full((2, 64), value, np.float32), name), name))
    assert np.abs(values - np.float32(value)).max() <= abs(value)


@pytest.mark.parametrize("name", BLOCKS)
def test_one_value_in_a_zero_block_survives_at_every_position(name):
    """Within half a step of the coarsest type, Q4_1 with its 15 steps."""
    values = np.concatenate([np.eye(32, dtype=np.float32), -np.eye(32, dtype=np.float32)])
    back = np.asarray(dequantize(quantize(values, name), name))
    assert np.abs(back - values).max() <= 0.5 / 15


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_search_errs_less_than_plain_rounding(name):
    values = np.random.default_rng(3).normal(size=(16, 1024)).astype(np.float32)

    def error(blocks):
        return np.square(np.asarray(dequantize(blocks, name)) - values).mean()

    assert error(quantize(values, name)) < error(
        gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    )


SUPPORTED = (
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,"
    " IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, Q1_0, Q2_0, NVFP4"
)


@pytest.mark.parametrize("name", ["Q8_1", "F64", "I32"])
def test_a_type_without_a_quantizer_names_those_of_files_that_have_one(name):
    with pytest.raises(NotImplementedError, match=f"no quantizer for {name}; .* {SUPPORTED}$"):
        quantize(np.zeros(256, np.float32), name)


@pytest.mark.parametrize("name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"])
def test_a_type_that_needs_importances_says_so(name):
    with pytest.raises(NotImplementedError, match=f"{name}, .* importance .* {SUPPORTED}$"):
        quantize(np.zeros(256, np.float32), name)


@pytest.mark.parametrize("name", ["F16", *BLOCKS])
def test_nan_and_infinity_are_refused_with_their_count(name):
    values = np.zeros((2, 32), np.float32)
    values[0, 3], values[1, 4], values[1, 5] = np.nan, np.inf, -np.inf
    with pytest.raises(
        ValueError, match=f"3 of 64 values are NaN or infinite, which {name} cannot hold"
    ):
        quantize(values, name)


@pytest.mark.parametrize("name", ["F16", *HALF_SCALED])
@pytest.mark.parametrize("value", [9e6, -9e6, 1e20, -3e38])
def test_values_that_float16_cannot_carry_are_refused(name, value):
    values = np.zeros((1, 64), np.float32)
    values[0, 33] = value
    refusal = (
        f"values up to {abs(value):g} are too large for {name}: its float16 numbers end at 65504"
    )
    with pytest.raises(ValueError, match=re.escape(refusal)):
        quantize(values, name)


def test_a_value_that_rounds_to_infinity_in_bfloat16_is_refused():
    with pytest.raises(
        ValueError,
        match="values up to .* are too large for BF16: its bfloat16 numbers end at 3.38953e.38",
    ):
        quantize(np.full(1, np.finfo(np.float32).max), "BF16")


@pytest.mark.parametrize("name", ["MXFP4", "MXFP6_E2M3", "MXFP6_E3M2"])
def test_mx_types_carry_the_whole_range_of_float32(name):
    values = np.repeat(2.0 ** np.arange(-120, 127, dtype=np.float32), 32).reshape(-1, 32)
    np.testing.assert_array_equal(np.asarray(dequantize(quantize(values, name), name)), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(33, np.float32), "a Q8_0 row is whole blocks of 32 elements, got 33"),
        (
            np.zeros(32, np.float64),
            r"float32, bfloat16 or float16 \[\.\.\., elements\], got float64 \[32\]",
        ),
        (np.zeros(32, np.int32), r"float32, .* got int32 \[32\]"),
        (np.float32(1), r"float32, .* \[\.\.\., elements\], got float32 \[\]"),
    ],
)
def test_what_is_no_row_of_numbers_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        quantize(values, "Q8_0")
