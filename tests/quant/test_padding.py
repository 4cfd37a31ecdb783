"""Rows with groups of zeros at their end: everything else sees the matrix without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax.quant import (
    QParam,
    QTensor,
    dequantize,
    expert_matmul,
    matmul,
    take_rows,
    word_packed,
)

pytestmark = pytest.mark.core

#: Types whose groups share no scale, of each kind: without and with a table, minima, halves.
TYPES = ("Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
#: Groups of a row: 45 groups are padded to 48.
GROUPS = 45


@pytest.mark.parametrize(
    ("groups", "padding"),
    [(90, 6), (64, 0), (12, 0), (142, 2), (45, 3), (50, 2), (17, 0), (30, 2), (101, 3), (1, 0)],
)
def test_rows_begin_at_multiples_of_32_or_16_bytes(groups, padding):
    """At most 7 % are appended: 17 groups stay, because 20 would be 18 % more."""
    assert word_packed.padding_of(groups) == padding


@pytest.fixture(params=TYPES)
def pair(request, packed):
    """The same matrix (in, out) without and with padding, and its bytes."""
    rows, _ = packed(request.param, 21, GROUPS)
    plain = QTensor.from_bytes(rows, request.param, layout="groups", transposed=True)
    padded = plain.padded()
    assert padded.padding == 3 and padded.planes["codes"].shape[-1] == 48
    return plain, padded, rows


def test_shapes_bytes_and_values(pair):
    plain, padded, rows = pair
    assert padded.shape == plain.shape == (GROUPS * 32, 21)
    assert (padded.size, padded.groups) == (plain.size, plain.groups)
    assert padded.padded() is padded
    np.testing.assert_array_equal(padded.to_bytes(), rows)
    np.testing.assert_array_equal(dequantize(padded, backend="xla"), dequantize(plain))
    ids = jnp.array([[3, 20], [0, 3]])
    np.testing.assert_array_equal(take_rows(padded.T, ids), take_rows(plain.T, ids))
    shown = QParam(plain)._repr_html_().partition("</div>")[2]  # without the size in memory
    assert shown and QParam(padded)._repr_html_().endswith(shown)


@pytest.mark.parametrize("count", [1, 9])
def test_products_in_plain_xla(count, pair, normal, distance):
    plain, padded, _ = pair
    x = normal(count, GROUPS * 32)
    exact = np.float64(x) @ np.float64(dequantize(plain))
    assert distance(matmul(x, padded, backend="xla"), exact) < 1e-6
    g = normal(count, 21)
    exact = np.float64(g) @ np.float64(dequantize(plain.T))
    assert distance(matmul(g, padded.T, backend="xla"), exact) < 1e-6


@pytest.mark.parametrize(
    ("count", "dtype", "mode"),
    [(1, "float32", "int16"), (2, "float32", "float"), (5, "bfloat16", "int16")],
)
@pytest.mark.parametrize("pair", ["Q5_1", "MXFP4"], indirect=True)
def test_products_in_kernels(count, dtype, mode, pair, interpreted, normal, distance):
    """Steps may have another width, which changes the order of a sum."""
    plain, padded, _ = pair
    x, how = jnp.asarray(normal(count, GROUPS * 32), dtype), dict(dtype=jnp.float32)
    one, other = (matmul(x, w, activations=mode, backend="pallas", **how) for w in (plain, padded))
    assert distance(other, np.float64(one)) < 1e-6


@pytest.mark.parametrize("pair", ["Q5_1", "MXFP4"], indirect=True)
def test_values_in_kernels(pair, interpreted):
    plain, padded, _ = pair
    np.testing.assert_array_equal(
        dequantize(padded, backend="pallas"), dequantize(plain, backend="xla")
    )


def test_an_expert_of_a_stack(packed, normal):
    rows, values = packed("MXFP4", 21, GROUPS)
    stack = QTensor.from_bytes(rows.reshape(3, 7, -1), "MXFP4", layout="groups", transposed=True)
    x = normal(2, GROUPS * 32)
    found = jax.jit(expert_matmul)(x, stack.padded(), jnp.int32(2))
    np.testing.assert_allclose(found, np.float64(x) @ np.float64(values[14:].T), rtol=1e-4)


def test_what_is_not_padded(packed):
    """Other layouts, and rows that are aligned."""
    for name, groups, layout in (("Q4_0", GROUPS, "rows"), ("Q4_0", 64, "groups")):
        w = QTensor.from_bytes(packed(name, 3, groups)[0], name, layout=layout)
        assert w.padded() is w
