"""Every ggml type in a file that the gguf package wrote: type id, shape, sizes and bytes."""

import json

import gguf
import numpy as np
import pytest

from rocmforge_jax.formats import FORMATS
from rocmforge_jax.gguf import open_gguf

pytestmark = pytest.mark.core

#: ggml.h, enum ggml_type, and the bytes of a block, ggml-common.h.
GGML_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 36),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
    "Q2_0": (42, 64, 18),
}
IN_FILES = [name for name, fmt in FORMATS.items() if fmt.ggml_id is not None]


def write(path, type_id, shape, blocks):
    """A file of one tensor, by the gguf package.

    Given no uint8 it takes shape and type as they are.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor_info("x", shape, np.dtype("int8"), blocks.nbytes, raw_dtype=type_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_tensor_data(blocks)
    writer.close()


def test_every_type_of_ggml_is_known():
    assert sorted(IN_FILES) == sorted(GGML_TYPES)


def check_holds(path, name, shape, blocks):
    info = open_gguf(path).tensors["x"]
    assert (info.format.name, info.format.ggml_id, info.shape, info.nbytes) == (
        name,
        GGML_TYPES[name][0],
        shape,
        blocks.nbytes,
    )
    np.testing.assert_array_equal(info.data, blocks, strict=True)


@pytest.mark.parametrize("name", GGML_TYPES)
def test_a_file_of_each_type(tmp_path, name):
    type_id, block, block_bytes = GGML_TYPES[name]
    blocks = np.random.default_rng(type_id).integers(0, 256, (2, 3, 2 * block_bytes), np.uint8)
    write(tmp_path / "m.gguf", type_id, (2, 3, 2 * block), blocks)
    check_holds(tmp_path / "m.gguf", name, (2, 3, 2 * block), blocks)


@pytest.mark.parametrize("name", GGML_TYPES)
def test_that_check_fails_on_every_other_type(tmp_path, name):
    for other, (type_id, block, block_bytes) in GGML_TYPES.items():
        if other != name:
            blocks = np.zeros(256 // block * block_bytes, np.uint8)
            write(tmp_path / "m.gguf", type_id, (256,), blocks)
            with pytest.raises(AssertionError, match=name):
                check_holds(tmp_path / "m.gguf", name, (256,), blocks)


def test_blocks_of_ggmls_quantisers(tmp_path, reference):
    index = json.loads((reference / "dequant" / "index.json").read_text())
    assert len(index) >= 27
    for name, entry in index.items():
        blocks = np.load(reference / "dequant" / f"{name}.npz")["random_bytes"]
        shape = (len(blocks), 1024)
        write(tmp_path / "m.gguf", entry["ggml_type"], shape, blocks)
        check_holds(tmp_path / "m.gguf", name.upper(), shape, blocks)
