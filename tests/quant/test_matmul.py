"""Products with packed weights against float64 NumPy products with ggml's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.quant import QParam, QTensor, expert_matmul, matmul, xla_columns
from tests.quant.conftest import LAYOUTS, QUANTIZED, in_every_layout

LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]

#: A float32 sum of K products of random sign is off by a few 1e-7, whatever its order.
FLOAT32 = 1e-6


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def kernel(packed, layout):
    """(type, outputs, blocks) -> (QTensor (in, out), its values in float64)."""

    def make(name, outputs, blocks):
        rows, values = packed(name, outputs, blocks)
        return QTensor.from_bytes(rows, name, layout=layout, transposed=True), np.float64(values.T)

    return make


CORE = ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ2_S", "MXFP4")


@pytest.mark.parametrize(("name", "layout"), in_every_layout(QUANTIZED, CORE))
def test_every_type(name, layout, packed, normal, distance):
    """Three rows of x, 37 outputs: no tile is full.

    The gradient in x is a product with the transposed weight.
    """
    rows, values = packed(name, 37, 3)
    x, c = normal(3, values.shape[1]), normal(3, 37)

    @jax.jit
    def run(rows, x):
        w = QTensor.from_bytes(rows, name, layout=layout, transposed=True)
        y, transpose = jax.vjp(lambda x: matmul(x, w), x)
        return y, *transpose(jnp.asarray(c))

    y, gradient = run(rows, x)
    assert y.dtype == gradient.dtype == jnp.float32
    assert distance(y, np.float64(x) @ np.float64(values.T)) < FLOAT32
    assert distance(gradient, np.float64(c) @ np.float64(values)) < FLOAT32


@pytest.mark.core
@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 33])
def test_any_number_of_rows(count, kernel, normal, distance):
    w, dense = kernel("Q5_1", 37, 3)
    x = normal(count, 96)
    y = jax.jit(matmul)(x, w)
    assert y.shape == (count, 37)
    assert count == 0 or distance(y, np.float64(x) @ dense) < FLOAT32


@pytest.mark.parametrize("name", ["Q4_1", "Q4_K"])
@pytest.mark.parametrize(("outputs", "blocks"), [(1, 1), (2, 3), (5, 1), (130, 19)])
def test_sizes_that_are_not_round(name, outputs, blocks, kernel, normal, distance):
    w, dense = kernel(name, outputs, blocks)
    x = normal(2, len(dense))
    assert distance(jax.jit(matmul)(x, w), np.float64(x) @ dense) < FLOAT32


@pytest.mark.core
@pytest.mark.parametrize("lead", [(), (1,), (2, 1, 3)])
def test_leading_axes_stay(lead, kernel, normal, distance):
    w, dense = kernel("Q8_0", 7, 3)
    x = normal(*lead, 96)
    for weight in (
        w,
        QParam(w),
        jnp.asarray(dense, jnp.float32),
        nnx.Param(jnp.asarray(dense, jnp.float32)),
    ):
        assert distance(matmul(x, weight), np.float64(x) @ dense) < FLOAT32


@pytest.mark.core
def test_an_embedding_multiplies_as_it_lies(kernel, normal, distance):
    w, dense = kernel("Q8_0", 37, 3)
    x = normal(3, 37)
    assert distance(matmul(x, w.T), np.float64(x) @ dense.T) < FLOAT32


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_x_is_accumulated_in_float32(count, dtype, layout, kernel, normal, distance):
    """Its values are taken as they are.

    Nine rows in a GPU's layout round the weight to x's dtype, for tensor cores.
    """
    w, dense = kernel("Q5_1", 37, 19)
    x = jnp.asarray(normal(count, len(dense)), dtype)
    if layout != "columns" and count > 8:
        dense = dense.astype(dtype).astype(np.float64)
    y = matmul(x, w, dtype=jnp.float32)
    assert distance(y, np.asarray(x).astype(np.float64) @ dense) < FLOAT32
    rounded = matmul(x, w)
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded, y.astype(dtype))
    gradient = jax.grad(lambda x: matmul(x, w, dtype=jnp.float32).sum())(x)
    assert gradient.dtype == dtype
    assert distance(gradient, np.ones((count, 37)) @ dense.T) < jnp.finfo(dtype).eps


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "count"), [*((name, 1) for name in LEGACY), ("Q4_0", 2), ("Q5_1", 2)]
)
def test_large_matrices_in_columns_decode_in_registers(name, count, packed, normal, distance):
    """The fused loop, which small matrices do not take; a prime number of columns."""
    rows, values = packed(name, 1741, 36)
    assert values.size >= xla_columns.FUSED_WEIGHTS
    w = QTensor.from_bytes(rows, name, layout="columns", transposed=True)
    x = normal(count, values.shape[1])
    assert distance(matmul(x, w), np.float64(x) @ np.float64(values.T)) < FLOAT32


@pytest.mark.parametrize("name", ["Q8_1", "IQ4_NL", "MXFP4", "MXFP6_E2M3", "MXFP6_E3M2"])
def test_large_matrices_of_other_small_blocks(name, packed, normal, distance):
    rows, values = packed(name, 1741, 36)
    x = normal(1, values.shape[1])
    w = QTensor.from_bytes(rows, name, layout="columns", transposed=True)
    assert distance(matmul(x, w), np.float64(x) @ np.float64(values.T)) < FLOAT32


@pytest.mark.core
def test_one_expert_of_a_stack(layout, packed, normal, distance):
    rows, values = packed("Q4_0", 21, 3)
    stack = QTensor.from_bytes(rows.reshape(3, 7, -1), "Q4_0", layout=layout, transposed=True)
    x, dense = normal(2, 96), np.float64(values).reshape(3, 7, 96).swapaxes(1, 2)
    product = jax.jit(expert_matmul)
    for weight in (stack, jnp.asarray(dense, jnp.float32)):
        for expert in (0, 2):
            assert (
                distance(product(x, weight, jnp.int32(expert)), np.float64(x) @ dense[expert])
                < FLOAT32
            )


@pytest.mark.core
def test_wrong_shapes_and_dtypes_are_refused_with_both(kernel):
    w, _ = kernel("Q4_0", 7, 3)
    stack = jax.tree.map(lambda plane: plane[None], w)
    for x, weight in (
        (np.zeros((2, 95), np.float32), w),
        (np.float32(1), w),
        (np.zeros((2, 96), np.float32), stack),
    ):
        message = (
            f"matmul: x {list(x.shape)} @ weight {list(weight.shape)}: the last axis of x must be"
            " the first of a matrix"
        )
        with pytest.raises(ValueError) as refusal:
            matmul(x, weight)
        assert str(refusal.value) == message
    with pytest.raises(
        ValueError, match=r"expert_matmul needs a stack \(experts, in, out\), got \[96, 7\]"
    ):
        expert_matmul(np.zeros((2, 96), np.float32), w, 0)
    for weight in (w, jnp.zeros((96, 7))):
        with pytest.raises(ValueError, match="matmul: x must be floating point, got int32"):
            matmul(np.zeros((2, 96), np.int32), weight)
        with pytest.raises(ValueError, match="auto, pallas, cpp, xla, got 'nonsense'"):
            matmul(np.zeros((2, 96), np.float32), weight, backend="nonsense")


@pytest.mark.core
def test_the_backend_can_be_named(kernel, normal):
    w, _ = kernel("Q4_0", 7, 3)
    np.testing.assert_array_equal(matmul(normal(2, 96), w, backend="xla"), matmul(normal(2, 96), w))


@pytest.mark.core
@pytest.mark.parametrize("type_name", ["Q4_0", "Q5_1", "Q8_0", "MXFP4"])
@pytest.mark.parametrize("layout", ["groups", "rows", "columns"])
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_few_rows_in_plain_xla_against_float64(rows, layout, type_name, normal):
    """XLA fuses decoding into the reduction of each row, and must keep the signs of codes."""
    blocks = formats.quantize(normal(72, 160) / np.float32(12), type_name)
    weight = QTensor.from_bytes(blocks, type_name, layout=layout, transposed=True)
    x = normal(rows, 160, seed=1)
    found = matmul(jnp.asarray(x), weight, activations="float", backend="xla")
    expected = np.float64(x) @ np.float64(formats.dequantize(blocks, type_name)).T
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
