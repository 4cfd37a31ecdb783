"""Values and rows of packed matrices, equal to ggml's to the bit in every layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.quant import QParam, QTensor, dequantize, take_rows
from tests.quant.conftest import LAYOUTS, QUANTIZED, in_every_layout

CORE = ("Q4_1", "Q5_0", "Q8_0", "Q3_K", "Q5_K", "IQ3_S", "NVFP4")
IDS = np.array([[3, 0, 3], [6, 5, 3]], np.int32)


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.mark.parametrize(("name", "layout"), in_every_layout(QUANTIZED, CORE))
def test_values_and_taken_rows_equal_ggml_to_the_bit(name, layout, packed):
    rows, values = packed(name, 7, 3)

    @jax.jit
    def read(rows):
        w = QTensor.from_bytes(rows, name, layout=layout)
        return dequantize(w), take_rows(w, IDS)

    dense, taken = read(rows)
    np.testing.assert_array_equal(np.asarray(dense).view(np.uint32), values.view(np.uint32))
    np.testing.assert_array_equal(np.asarray(taken).view(np.uint32), values[IDS].view(np.uint32))


@pytest.mark.core
def test_the_transpose_has_the_transposed_values(layout, packed):
    rows, values = packed("Q5_1", 7, 3)
    np.testing.assert_array_equal(
        dequantize(QTensor.from_bytes(rows, "Q5_1", layout=layout, transposed=True)), values.T
    )


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", jnp.bfloat16, np.dtype("float16")])
def test_other_dtypes_are_the_rounding_of_the_values(dtype, layout, packed):
    rows, values = packed("Q5_1", 7, 3)
    w = QTensor.from_bytes(rows, "Q5_1", layout=layout)
    rounded = values.astype(dtype)
    for actual, expected in (
        (dequantize(w, dtype), rounded),
        (take_rows(w, IDS, dtype), rounded[IDS]),
    ):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(actual).view(np.uint16), expected.view(np.uint16))


@pytest.mark.core
@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 0), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_ids_have_any_shape(shape, dtype, layout, packed):
    rows, values = packed("Q5_1", 7, 3)
    ids = np.random.default_rng(0).integers(0, 7, shape).astype(dtype)
    taken = take_rows(QTensor.from_bytes(rows, "Q5_1", layout=layout), ids)
    assert taken.dtype == jnp.float32
    np.testing.assert_array_equal(taken, values[ids])


@pytest.mark.core
def test_ids_outside_the_table_are_clipped(layout, packed):
    rows, values = packed("Q5_1", 7, 3)
    w = QTensor.from_bytes(rows, "Q5_1", layout=layout)
    for table in (w, QParam(w), jnp.asarray(values)):
        np.testing.assert_array_equal(
            take_rows(table, np.array([-1, 7, 2**31 - 1], np.int32)), values[[0, 6, 6]]
        )


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float64", "int8", bool])
def test_dequantize_refuses_other_dtypes(dtype, layout):
    w = QTensor.from_bytes(np.zeros((1, 18), np.uint8), "Q4_0", layout=layout)
    with pytest.raises(
        ValueError, match=f"dequantize gives float32, bfloat16 or float16, got {np.dtype(dtype)}"
    ):
        dequantize(w, dtype)


@pytest.mark.core
def test_take_rows_refuses_stacks_transposed_tables_and_ids_that_are_no_integers(layout):
    w = QTensor.from_bytes(np.zeros((7, 54), np.uint8), "Q4_0", layout=layout)
    stack = QTensor.from_bytes(np.zeros((2, 7, 54), np.uint8), "Q4_0", layout=layout)
    with pytest.raises(
        ValueError,
        match=(
            r"take_rows reads packed rows; QTensor\(Q4_0, shape=\(96, 7\).* is transposed: take"
            r" its \.T"
        ),
    ):
        take_rows(w.T, IDS)
    with pytest.raises(
        ValueError, match=r"take_rows needs a matrix and integer ids, got \[2, 7, 96\] and int32"
    ):
        take_rows(stack, IDS)
    for ids in (np.zeros(2, np.float32), np.zeros(2, bool)):
        with pytest.raises(
            ValueError,
            match=rf"take_rows needs a matrix and integer ids, got \[7, 96\] and {ids.dtype}",
        ):
            take_rows(w, ids)


@pytest.mark.core
def test_unknown_backends_are_refused(layout):
    w = QTensor.from_bytes(np.zeros((7, 54), np.uint8), "Q4_0", layout=layout)
    for call in (
        lambda: dequantize(w, backend="nonsense"),
        lambda: take_rows(w, IDS, backend="nonsense"),
    ):
        with pytest.raises(ValueError, match="auto, pallas, cpp, xla, got 'nonsense'"):
            call()
