"""QTensor: bytes in, the same bytes out; shapes; a pytree under every transformation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.quant import QTensor, default_layout, dequantize, matmul
from tests.quant.conftest import IN_GROUPS, LAYOUTS, QUANTIZED, in_every_layout

CORE = ("Q4_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4")
#: Bytes of a block that layout "groups" adds: 6-bit scales become bytes.
ADDED = {"Q3_K": 4, "Q4_K": 4, "Q5_K": 4, "IQ4_XS": 2}


@pytest.mark.parametrize(("name", "layout"), in_every_layout(QUANTIZED, CORE))
def test_bytes_come_back_whatever_they_are(name, layout):
    """Random bits, so NaN scales too, for a stack of matrices."""
    f = formats.get(name)
    rows = np.random.default_rng(1).integers(0, 256, (2, 5, 3 * f.block_bytes), dtype=np.uint8)

    @jax.jit
    def split(rows):
        w = QTensor.from_bytes(rows, name, layout=layout)
        return w, w.to_bytes()

    w, back = split(rows)
    np.testing.assert_array_equal(back, rows)
    added = 2 * 5 * 3 * ADDED.get(name, 0) if layout == "groups" else 0
    assert (w.nbytes, w.stored_shape, w.format) == (rows.size + added, (2, 5, 3 * f.block), f)


@pytest.mark.core
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shape_is_the_stored_one_or_its_transpose(layout, lead):
    rows = np.zeros((*lead, 7, 3 * 24), np.uint8)
    w = QTensor.from_bytes(rows, "q5_1", layout=layout)
    kernel = QTensor.from_bytes(rows, 7, layout=layout, transposed=True)
    assert (w.shape, w.T.shape, w.ndim) == ((*lead, 7, 96), (*lead, 96, 7), len(lead) + 2)
    assert (kernel.shape, kernel.T.shape) == (w.T.shape, w.shape)
    assert w.stored_shape == w.T.stored_shape == kernel.stored_shape == (*lead, 7, 96)
    assert w.T.planes is w.planes and w.T.T == w
    assert repr(kernel) == f"QTensor(Q5_1, shape={kernel.shape}, layout={layout!r})"


@pytest.mark.core
def test_planes_are_minor_in_the_inputs_for_rows_and_in_the_outputs_for_columns():
    rows = np.zeros((7, 3 * 24), np.uint8)

    def shapes(layout):
        return {
            name: plane.shape
            for name, plane in QTensor.from_bytes(rows, "Q5_1", layout=layout).planes.items()
        }

    assert shapes("rows") == {"d": (7, 3), "m": (7, 3), "qh": (7, 3), "qs": (7, 3, 16)}
    assert shapes("columns") == {"d": (3, 7), "m": (3, 7), "qh": (3, 7), "qs": (3, 16, 7)}
    assert shapes("groups") == {"codes": (7, 5, 3), "d": (7, 3)}


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "on_a_gpu"),
    [("Q4_0", "groups"), ("Q6_K", "groups"), ("IQ3_S", "rows"), ("TQ1_0", "rows")],
)
def test_the_default_layout_is_that_of_the_type_on_the_device(name, on_a_gpu):
    fmt, gpu = formats.get(name), SimpleNamespace(platform="rocm")
    assert default_layout(fmt, jax.devices("cpu")[0]) == "columns"
    assert default_layout(fmt, gpu) == on_a_gpu
    expected = "columns" if jax.default_backend() == "cpu" else on_a_gpu
    assert (
        default_layout(fmt)
        == QTensor.from_bytes(np.zeros((1, fmt.block_bytes), np.uint8), name).layout
        == expected
    )


@pytest.mark.core
@pytest.mark.parametrize("name", [name for name in QUANTIZED if name not in IN_GROUPS])
def test_types_that_groups_cannot_hold_are_refused_by_name(name):
    row = np.zeros((1, formats.get(name).block_bytes), np.uint8)
    with pytest.raises(ValueError, match=f"{name} has no layout 'groups'"):
        QTensor.from_bytes(row, name, layout="groups")


@pytest.mark.core
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_a_pytree_for_jit_eval_shape_and_tree_map(layout, packed):
    rows, values = packed("Q5_1", 7, 3)
    w = QTensor.from_bytes(rows, "Q5_1", layout=layout, transposed=True)
    same = jax.tree.map(lambda plane: plane, w)
    assert isinstance(same, QTensor) and (same.shape, same.layout) == ((96, 7), layout)
    turned = jax.jit(lambda w: w.T)(w)
    np.testing.assert_array_equal(dequantize(turned), values)
    abstract = jax.eval_shape(
        lambda rows: QTensor.from_bytes(rows, "Q5_1", layout=layout, transposed=True), rows
    )
    assert abstract.shape == (96, 7) and isinstance(abstract.planes["d"], jax.ShapeDtypeStruct)
    assert jax.tree.structure(abstract) == jax.tree.structure(w)


@pytest.mark.core
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vmap_runs_over_a_stack(layout, packed, normal, distance):
    rows, values = packed("Q5_1", 14, 3)
    stack = QTensor.from_bytes(rows.reshape(2, 7, -1), "Q5_1", layout=layout, transposed=True)
    x, kernels = normal(2, 3, 96), values.reshape(2, 7, 96).swapaxes(1, 2)
    np.testing.assert_array_equal(dequantize(stack), kernels)
    np.testing.assert_array_equal(jax.vmap(dequantize)(stack), kernels)
    assert (
        distance(jax.vmap(matmul)(jnp.asarray(x), stack), np.float64(x) @ np.float64(kernels))
        < 1e-6
    )


@pytest.mark.core
@pytest.mark.parametrize(
    ("rows", "fmt", "message"),
    [
        (
            np.zeros((7, 53), np.uint8),
            "Q4_0",
            "a Q4_0 row is whole blocks of 18 bytes, got 53 bytes",
        ),
        (
            np.zeros(54, np.uint8),
            "Q4_0",
            r"a Q4_0 matrix is uint8 \[\.\.\., rows, row bytes\], .* got uint8 \[54\]",
        ),
        (np.zeros((7, 54), np.int8), "Q4_0", r"got int8 \[7, 54\]"),
        (np.zeros((0, 54), np.uint8), "Q4_0", r"at least one row and block, got uint8 \[0, 54\]"),
        (np.zeros((7, 0), np.uint8), "Q4_0", r"at least one row and block, got uint8 \[7, 0\]"),
        ([[0] * 18], "Q4_0", "got list"),
        (np.zeros((7, 8), np.uint8), "F32", "F32 is not quantised: hold it as an array"),
        (np.zeros((7, 18), np.uint8), "Q4_9", "no format is named 'Q4_9'; the nearest are Q4_"),
    ],
)
def test_what_is_no_packed_matrix_is_refused(rows, fmt, message):
    with pytest.raises(ValueError, match=message):
        QTensor.from_bytes(rows, fmt)


@pytest.mark.core
def test_an_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="a plane layout is one of groups, rows, columns, got 'diagonal'"
    ):
        QTensor.from_bytes(np.zeros((1, 18), np.uint8), "Q4_0", layout="diagonal")


@pytest.mark.core
@pytest.mark.parametrize("as_array", [jnp.asarray, np.asarray])
def test_it_never_becomes_an_array_by_itself(as_array):
    w = QTensor.from_bytes(np.zeros((1, 18), np.uint8), "Q4_0")
    with pytest.raises(
        TypeError,
        match=r"QTensor\(Q4_0.* does not become an array by itself: use rocmforge_jax.dequantize",
    ):
        as_array(w)
