"""The files of the reference set, against the gguf package's reader."""

import gguf
import numpy as np
import pytest

from rocmforge_jax.gguf import open_gguf, write_gguf

pytestmark = pytest.mark.core
COMPARED = (
    "models/gemma3.Q8_0.gguf",
    "models/gpt-oss.MXFP4_MOE.gguf",
    "models/qwen2.Q4_K_M.gguf",
    "tokenizers/ggml-vocab-llama-spm.gguf",
)


def test_the_whole_reference_is_there(whole_reference):
    assert len(list(whole_reference.glob("*/*.gguf"))) >= 31


def test_every_reference_file_opens(reference):
    paths = sorted(reference.glob("*/*.gguf"))
    assert len(paths) >= 3
    for path in paths:
        file = open_gguf(path)
        assert (file.version, file.byte_order, file.alignment) == (3, "little", 32)
        assert len(file.metadata) == len(dict(file.metadata)) >= 15
        assert sum(tensor.data.nbytes for tensor in file.tensors.values()) <= path.stat().st_size


@pytest.mark.parametrize("name", COMPARED)
def test_agrees_with_the_gguf_package(reference, name):
    ours, theirs = open_gguf(reference / name), gguf.GGUFReader(reference / name)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        value, expected = ours.metadata[key], field.contents()
        assert (list(value) if isinstance(expected, list) else value) == expected, key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.shape, info.format.ggml_id) == (
            tuple(tensor.shape[::-1].tolist()),
            tensor.tensor_type,
        )
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
        np.testing.assert_array_equal(info.data, tensor.data.view(np.uint8))


def test_what_is_read_is_written_back_to_the_byte(reference, tmp_path):
    for path in [*sorted(reference.glob("models/*.gguf")), reference / COMPARED[-1]]:
        file = open_gguf(path)
        write_gguf(
            tmp_path / "copy.gguf",
            file.metadata,
            {name: (info.format, info.data) for name, info in file.tensors.items()},
        )
        assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes(), path
