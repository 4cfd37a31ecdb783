"""A format that ggml does not have works in every layout and with kernels, by one declaration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.backends import cpp
from rocmforge_jax.formats import Affine, Codes, Field, Format, WordPacking
from rocmforge_jax.formats._bits import f32, i8, unpack
from rocmforge_jax.quant import QTensor, dequantize, matmul, repack, take_rows
from rocmforge_jax.quant.layout import split
from tests.quant.conftest import LAYOUTS

pytestmark = pytest.mark.core

#: 64 elements of 5 bits with a signed byte of scale for each 32. The upper bits come first, and bit
#: k of their byte i belongs to element 8k + i.
NEW = Format(
    "NEW5",
    None,
    64,
    (Field("high", "uint8", (8,)), Field("low", "uint8", (32,)))
    + (Field("scales", "int8", (2,)), Field("d", "float16")),
    affine=lambda high, low, scales, d: Affine(
        i8(unpack(low, 4, 32) | (unpack(high, 1, 8) << 4), 16), f32(d) * f32(scales)
    ),
    packing=WordPacking(
        (Codes("low", bits=4, run=32), Codes("high", bits=1, run=8)),
        offset=16,
        scales=("scales",),
        scheme="bytes",
        scale="int8",
    ),
    note="d * scale * (q - 16); 2 groups of 32",
)
N, K = 72, 256


@pytest.fixture
def new():
    formats.register(NEW)
    yield NEW
    formats.unregister(NEW)


@pytest.fixture(scope="module")
def rows():
    """Blocks of random codes and scales, uint8 [N, row bytes]."""
    struct = [("high", "u1", 8), ("low", "u1", 32), ("scales", "i1", 2), ("d", "f2")]
    generator, blocks = np.random.default_rng(0), np.zeros((N, K // 64), struct)
    for name in ("high", "low", "scales"):
        numbers = generator.integers(0, 256, blocks[name].shape, np.uint8)
        blocks[name] = numbers.view(blocks[name].dtype)
    blocks["d"] = generator.uniform(0.5e-3, 1.5e-3, blocks["d"].shape)
    return blocks.view(np.uint8).reshape(N, -1)


@pytest.fixture(scope="module")
def values(rows):
    """The values of `rows`, element by element in NumPy: float32 [N, K]."""
    out = np.zeros((N * K // 64, 64), np.float32)
    for block, to in zip(rows.reshape(-1, 44), out):
        scales, d = block[40:42].view(np.int8), block[42:].view(np.float16)[0]
        for element in range(64):
            nibble = int(block[8 + element % 32]) >> element // 32 * 4 & 15
            fifth = int(block[element % 8]) >> element // 8 & 1
            to[element] = float(d) * int(scales[element // 32]) * (nibble + 16 * fifth - 16)
    return out.reshape(N, K)


def weight(rows, layout):
    return QTensor.from_bytes(rows, "new5", layout=layout, transposed=True)


def test_it_is_found_by_name_while_it_is_registered(new):
    assert formats.get("new5") is new and new.block_bytes == 44
    with pytest.raises(ValueError, match="'NEW5'"):
        formats.register(new)


def test_it_is_gone_afterwards():
    with pytest.raises(ValueError, match="'NEW5'"):
        formats.get("NEW5")
    with pytest.raises(ValueError, match="'NEW5'"):
        formats.unregister(NEW)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_come_back(layout, new):
    rows = np.random.default_rng(1).integers(0, 256, (2, 5, 3 * 44), np.uint8)
    w = QTensor.from_bytes(rows, "NEW5", layout=layout)
    np.testing.assert_array_equal(w.to_bytes(), rows)
    assert (w.stored_shape, w.nbytes) == ((2, 5, 192), rows.nbytes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_exact(layout, new, rows, values):
    np.testing.assert_array_equal(formats.dequantize(rows, "NEW5"), values)
    w = weight(rows, layout)
    np.testing.assert_array_equal(dequantize(w), values.T)
    np.testing.assert_array_equal(take_rows(w.T, np.array([70, 3], np.int32)), values[[70, 3]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_products_in_xla(layout, count, new, rows, values, normal, distance):
    x = normal(count, K)
    y = matmul(jnp.asarray(x), weight(rows, layout), backend="xla")
    assert distance(y, np.float64(x) @ np.float64(values.T)) < 1e-6


@pytest.mark.parametrize(("mode", "error"), [("int16", 1e-4), ("int8", 8e-3), ("float", 1e-6)])
def test_products_of_few_rows_in_pallas(
    mode, error, new, rows, values, normal, distance, interpreted
):
    x = normal(2, K)
    y = matmul(jnp.asarray(x), weight(rows, "groups"), activations=mode, backend="pallas")
    assert 0 < distance(y, np.float64(x) @ np.float64(values.T)) < error


def test_products_of_many_rows_in_pallas(new, rows, values, normal, distance, interpreted):
    x = normal(20, K).astype(jnp.bfloat16)
    y = matmul(jnp.asarray(x), weight(rows, "groups"), dtype=jnp.float32, backend="pallas")
    assert 0 < distance(y, x.astype(np.float64) @ np.float64(values.T)) < 2e-3


def test_values_in_pallas(new, rows, values, interpreted):
    found = dequantize(weight(rows, "groups"), backend="pallas")
    np.testing.assert_array_equal(found, values.T)


def test_planes_in_cpp(new, rows, in_cpp):
    made, expected = repack.planes_of(cpp.file(), rows, new), split(rows, new, "groups")
    assert made.keys() == expected.keys() == {"codes", "d", "scale"}
    jax.tree.map(np.testing.assert_array_equal, made, dict(expected))


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(("mode", "error"), [("int16", 1e-4), ("int8", 8e-3)])
def test_products_in_cpp(mode, error, count, new, rows, values, normal, distance, in_cpp):
    x, w = (
        normal(count, K),
        QTensor.from_planes(repack.planes_of(cpp.file(), rows, new), new, transposed=True),
    )
    y = matmul(jnp.asarray(x), w, activations=mode, backend="cpp")
    assert 0 < distance(y, np.float64(x) @ np.float64(values.T)) < error


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_another_format_of_the_same_name_has_its_own_values(layout, rows):
    """Traced functions know a format by its name."""
    other = dataclasses.replace(
        NEW,
        affine=lambda **fields: NEW.affine(**fields)._replace(scale=2 * NEW.affine(**fields).scale),
        packing=None,
    )
    found = []
    for fmt in (dataclasses.replace(NEW, packing=None), other):
        formats.register(fmt)
        try:
            found.append(np.asarray(dequantize(weight(rows, layout))))
        finally:
            formats.unregister(fmt)
    np.testing.assert_array_equal(found[1], 2 * found[0])


def test_formats_of_ggml_stay():
    with pytest.raises(ValueError, match="Q4_0"):
        formats.unregister(formats.get("Q4_0"))
    assert formats.get("Q4_0").name == "Q4_0"
