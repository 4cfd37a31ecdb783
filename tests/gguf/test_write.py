"""What `write_gguf` writes, read back."""

import ml_dtypes
import numpy as np
import pytest

from rocmforge_jax.formats import FORMATS
from rocmforge_jax.gguf import GGUFError, open_gguf, write_gguf

pytestmark = pytest.mark.core

VALUES = [
    (1, "uint32", 1),
    (2**32 - 1, "uint32", 2**32 - 1),
    (-1, "int32", -1),
    (2**32, "int64", 2**32),
    (2**63, "uint64", 2**63),
    (0.5, "float32", 0.5),
    (1e300, "float64", 1e300),
    (float("inf"), "float32", float("inf")),
    (True, "bool", True),
    ("", "string", ""),
    ("text", "string", "text"),
    (b"\xff", "string", b"\xff"),
    (np.uint8(7), "uint8", 7),
    (np.int16(-7), "int16", -7),
    (np.uint64(7), "uint64", 7),
    (np.float64(0.1), "float64", 0.1),
    (np.bool_(False), "bool", False),
    (np.str_("text"), "string", "text"),
]
ARRAYS = [
    ([1, -1], "array[int32] x 2", np.array([1, -1], "int32")),
    ([1, 2**31], "array[uint32] x 2", np.array([1, 2**31], "uint32")),
    ((-1, 2**31), "array[int64] x 2", np.array([-1, 2**31], "int64")),
    ([2**63], "array[uint64] x 1", np.array([2**63], "uint64")),
    ([0, 0.5], "array[float32] x 2", np.array([0, 0.5], "float32")),
    ([True, False], "array[bool] x 2", np.array([True, False])),
    (np.arange(5, dtype="int8"), "array[int8] x 5", np.arange(5, dtype="int8")),
    (np.array([1e-300]), "array[float64] x 1", np.array([1e-300])),
]


@pytest.mark.parametrize(("value", "kind", "expected"), VALUES, ids=repr)
def test_values_have_the_type_that_is_documented(tmp_path, value, kind, expected):
    write_gguf(tmp_path / "m.gguf", {"key": value}, {})
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert (metadata.describe("key"), metadata["key"]) == (kind, expected)
    assert type(metadata["key"]) is type(expected)


@pytest.mark.parametrize(("value", "kind", "expected"), ARRAYS, ids=repr)
def test_arrays_have_the_type_that_is_documented(tmp_path, value, kind, expected):
    write_gguf(tmp_path / "m.gguf", {"key": value}, {})
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert metadata.describe("key") == kind
    assert metadata["key"].dtype == expected.dtype
    np.testing.assert_array_equal(metadata["key"], expected)


@pytest.mark.parametrize(
    "strings", [["a", "", "ä"], [b"\xff", "b"], np.array(["a", "bc"])], ids=repr
)
def test_arrays_of_strings(tmp_path, strings):
    write_gguf(tmp_path / "m.gguf", {"key": strings}, {})
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert metadata.describe("key") == f"array[string] x {len(strings)}"
    assert metadata["key"] == tuple(strings)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        np.array([], "int32"),
        [1, "a"],
        [[1]],
        np.zeros((2, 2)),
        {"a": 1},
        2**64,
        [-1, 2**63],
        1j,
        np.float16(1),
    ],
    ids=repr,
)
def test_values_without_a_type_are_refused_by_key(tmp_path, value):
    with pytest.raises(ValueError, match="'the.key': no GGUF type for"):
        write_gguf(tmp_path / "m.gguf", {"the.key": value}, {})
    assert list(tmp_path.iterdir()) == []


PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
PLAIN |= {"I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}


@pytest.mark.parametrize(("name", "dtype"), PLAIN.items())
def test_values_of_plain_formats(tmp_path, name, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_gguf(tmp_path / "m.gguf", {}, {"x": (name, array)})
    info = open_gguf(tmp_path / "m.gguf").tensors["x"]
    assert (info.format, info.shape) == (FORMATS[name], (2, 3, 4))
    np.testing.assert_array_equal(info.data.view(dtype), array)


def test_order_and_alignment(tmp_path):
    tensors = {name: ("f32", np.full(n, n, "float32")) for n, name in enumerate("zyx", start=1)}
    write_gguf(tmp_path / "m.gguf", {"b": 1, "general.alignment": 256, "a": 2}, tensors)
    file = open_gguf(tmp_path / "m.gguf")
    assert (list(file.metadata), file.alignment, list(file.tensors)) == (
        ["b", "general.alignment", "a"],
        256,
        ["z", "y", "x"],
    )
    assert [info.offset % 256 for info in file.tensors.values()] == [0, 0, 0]
    for name, (_, array) in tensors.items():
        np.testing.assert_array_equal(file.tensors[name].data.view("float32"), array)


@pytest.mark.parametrize("alignment", [0, 13, -32])
def test_alignments_that_are_no_power_of_two(tmp_path, alignment):
    with pytest.raises(ValueError, match="power of two"):
        write_gguf(tmp_path / "m.gguf", {"general.alignment": alignment}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            ("F16", np.zeros(4, "float32")),
            "'x': F16 is written from an array of uint8 or float16, got float32",
        ),
        (
            ("Q4_0", np.zeros(32, "float32")),
            "'x': Q4_0 is written from an array of uint8, got float32",
        ),
        (
            ("Q4_0", np.zeros(32, "float64")),
            "'x': Q4_0 is written from an array of uint8, got float64",
        ),
        (
            ("Q4_0", np.zeros(19, "uint8")),
            "'x': a Q4_0 row is whole blocks of 18 bytes, got 19 bytes",
        ),
        (("F32", np.float32(1)), "'x': a tensor has at least one dimension"),
        (("MXFP6_E2M3", np.zeros(25, "uint8")), "'x': GGUF has no id for MXFP6_E2M3"),
        (("Q4_9", np.zeros(18, "uint8")), "no format is named 'Q4_9'"),
    ],
)
def test_arrays_that_are_not_of_their_format(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", {}, {"x": tensor})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"": 1}, {}, "key 0 is empty"),
        ({"a\0b": 1}, {}, "zero byte"),
        ({}, {"n" * 64: ("F32", np.zeros(1, "float32"))}, "has 64 bytes, the most is 63"),
        ({}, {"x": ("F32", np.zeros((1, 1, 1, 1, 1), "float32"))}, "has 5 dimensions"),
    ],
)
def test_what_the_reader_refuses_is_not_written(tmp_path, metadata, tensors, message):
    old = {"kept": 1}
    write_gguf(tmp_path / "m.gguf", old, {})
    with pytest.raises(GGUFError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert dict(open_gguf(tmp_path / "m.gguf").metadata) == old


def test_a_file_is_rewritten_from_its_own_arrays(tmp_path):
    path = tmp_path / "m.gguf"
    array = np.arange(1000, dtype="float32")
    write_gguf(path, {}, {"x": ("F32", array)})
    info = open_gguf(path).tensors["x"]
    write_gguf(path, {"added": True}, {"x": (info.format, info.data)})
    np.testing.assert_array_equal(open_gguf(path).tensors["x"].data.view("float32"), array)
    np.testing.assert_array_equal(info.data.view("float32"), array)


def test_bfloat16_bits(tmp_path):
    bits = np.array([0x3F80, 0x7F80, 0xFF80, 0x0001], "uint16")
    write_gguf(tmp_path / "m.gguf", {}, {"x": ("BF16", bits.view(ml_dtypes.bfloat16))})
    np.testing.assert_array_equal(
        open_gguf(tmp_path / "m.gguf").tensors["x"].data.view("uint16"), bits
    )
