"""Big-endian files: the same values, and blocks that come out little endian."""

import gguf
import numpy as np
import pytest

from rocmforge_jax.formats import FORMATS
from rocmforge_jax.gguf import GGUFError, open_gguf

pytestmark = pytest.mark.core
IN_FILES = [name for name, fmt in FORMATS.items() if fmt.ggml_id is not None]


def swapped(blocks, fmt):
    """uint8 [rows, bytes]: every member of every block in the other byte order, by NumPy's own
    rules for structs.
    """
    block = np.dtype(
        [
            (field.name, field.dtype.replace("bfloat16", "uint16"), field.shape)
            for field in fmt.fields
        ]
    )
    return blocks.view(block).astype(block.newbyteorder(">")).view(np.uint8)


def open_big_endian(path, fmt, shape, blocks):
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor_info("x", shape, np.dtype("int8"), blocks.nbytes, raw_dtype=fmt.ggml_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(blocks)
    writer.close()
    return open_gguf(path)


@pytest.mark.parametrize("name", IN_FILES)
def test_blocks_come_out_little_endian(tmp_path, name):
    fmt = FORMATS[name]
    blocks = np.random.default_rng(0).integers(0, 256, (3, 2 * fmt.block_bytes), np.uint8)
    info = open_big_endian(
        tmp_path / "m.gguf", fmt, (3, 2 * fmt.block), swapped(blocks, fmt)
    ).tensors["x"]
    assert (info.shape, info.format.name) == ((3, 2 * fmt.block), name)
    np.testing.assert_array_equal(info.data, blocks, strict=True)
    assert not info.data.flags.writeable


def test_which_bytes_of_a_block_are_swapped(tmp_path):
    """ggml-common.h: block_q5_1 is two f16, uint32 of fifth bits, 16 bytes.

    Block_q6_K ends in its only f16.
    """
    q5_1 = np.arange(24, dtype="uint8")
    expected = [1, 0, 3, 2, 7, 6, 5, 4, *range(8, 24)]
    assert (
        open_big_endian(tmp_path / "a.gguf", FORMATS["Q5_1"], (32,), q5_1)
        .tensors["x"]
        .data.tolist()
        == expected
    )
    q6_k = np.arange(210, dtype="uint8")
    expected = [*range(208), 209, 208]
    assert (
        open_big_endian(tmp_path / "b.gguf", FORMATS["Q6_K"], (256,), q6_k)
        .tensors["x"]
        .data.tolist()
        == expected
    )


def test_values_written_by_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_uint32("u", 7)
    writer.add_float64("f", 0.1)
    writer.add_bool("b", True)
    writer.add_array("n", [1, -2, 3])
    writer.add_array("s", ["a", "ä"])
    writer.add_custom_alignment(64)
    array = np.arange(6, dtype="float32").reshape(2, 3)
    writer.add_tensor("x", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(tmp_path / "m.gguf")
    assert (file.version, file.byte_order, file.alignment, file.architecture) == (
        3,
        "big",
        64,
        "llama",
    )
    assert [file.metadata[key] for key in "ufb"] == [7, 0.1, True]
    assert file.metadata["s"] == ("a", "ä")
    np.testing.assert_array_equal(file.metadata["n"], np.array([1, -2, 3], "int32"), strict=True)
    assert file.metadata["n"].dtype.isnative
    np.testing.assert_array_equal(file.tensors["x"].data.view("float32"), array, strict=True)


@pytest.mark.parametrize(("version", "message"), [(1, "GGUF version 1, "), (4, "GGUF version 4, ")])
def test_versions(raw_big_endian, open_bytes, version, message):
    with pytest.raises(GGUFError, match=message):
        open_bytes(raw_big_endian.file(version=version))


def test_version_2(raw_big_endian, open_bytes):
    file = open_bytes(raw_big_endian.file([raw_big_endian.pair("k", "int64", -5)], version=2))
    assert (file.version, file.byte_order, file.metadata["k"]) == (2, "big", -5)


def test_lengths_are_checked_in_the_file_order(raw_big_endian, open_bytes):
    with pytest.raises(GGUFError, match="the header claims 72057594037927936 keys"):
        open_bytes(raw_big_endian.file(keys=2**56))


def test_every_truncation_is_refused(raw_big_endian, open_bytes):
    raw = raw_big_endian
    data = raw.file(
        [raw.pair("k", "string", "v"), raw.array("a", "string", ["b", "c"])],
        [raw.tensor("t", [8])],
        bytes(32),
    )
    assert open_bytes(data).tensors["t"].shape == (8,)
    for length in range(len(data)):
        with pytest.raises(GGUFError):
            open_bytes(data[:length])
