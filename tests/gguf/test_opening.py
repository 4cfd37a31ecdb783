"""Paths that are no GGUF file, files that change, and how an open file looks."""

import bz2
import gzip
import lzma
import os
import pickle

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError, open_gguf, write_gguf

pytestmark = pytest.mark.core

NOT_GGUF = {
    "safetensors": (
        b'\x40\0\0\0\0\0\0\0{"__metadata__":{}}',
        "is a safetensors file, not a GGUF file: convert the model to GGUF",
    ),
    "zip": (b"PK\x03\x04\x14\0", "is a zip archive, such as a PyTorch checkpoint"),
    "pickle": (b"\x80\x02}q\0.", "is a Python pickle"),
    "html": (b"\n<!DOCTYPE html><html>", "is a web page, not a GGUF file: the download gave HTML"),
    "html without doctype": (b"<HTML><head>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error>", "is an XML document"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid",
        "is a Git LFS pointer, not a GGUF file: fetch the file itself with `git lfs pull`",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "gzip": (gzip.compress(b"GGUF"), "is compressed with gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\0", "is compressed with zstd"),
    "ggml": (
        b"lmgg\0\0\0\0",
        "is an old llama.cpp file from before GGUF, not a GGUF file: convert the model again",
    ),
    "ggjt": (b"tjgg\x03\0\0\0", "is an old llama.cpp file from before GGUF"),
    "bzip2": (bz2.compress(b"GGUF"), "is compressed with bzip2, not a GGUF file: unpack it first"),
    "xz": (lzma.compress(b"GGUF"), "is compressed with xz, not a GGUF file: unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive, not a GGUF file: unpack it first"),
    "pickle of today": (pickle.dumps({"x": 1}), "is a Python pickle"),
    "json": (b'{"error": "Repository not found"}', "is JSON, not a GGUF file: .* an error message"),
    "text": (
        b"Entry not found\n",
        r"is text, not a GGUF file: .* an error message .*, b'Entry not found",
    ),
    "one letter": (b"x", "is text, .*, b'x'"),
    "a hole": (
        bytes(4096),
        "is not a GGUF file: it begins with zeros, so the download is not complete",
    ),
    "bytes": (
        b"\1\2\3\4\5\6\7\x08\x09",
        r"is not a GGUF file, which begins with b'GGUF': it begins with b'\\x01\\x02",
    ),
}


@pytest.mark.parametrize(("content", "message"), NOT_GGUF.values(), ids=NOT_GGUF)
def test_other_files_are_named(open_bytes, content, message):
    with pytest.raises(GGUFError, match=f"file.gguf {message}"):
        open_bytes(content)


def test_an_empty_file(open_bytes):
    with pytest.raises(GGUFError, match="file.gguf: the file is empty"):
        open_bytes(b"")


def test_a_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no file .*model.gguf; the folder has no .gguf file"
    ):
        open_gguf(tmp_path / "model.gguf")
    write_gguf(tmp_path / "model-q4_0.gguf", {}, {})
    write_gguf(tmp_path / "zebra.gguf", {}, {})
    with pytest.raises(
        FileNotFoundError, match="no file .*model-q4.gguf; the folder has model-q4_0.gguf, zebra"
    ):
        open_gguf(tmp_path / "model-q4.gguf")


def test_a_folder_lists_its_files(tmp_path):
    with pytest.raises(GGUFError, match="is a folder without a .gguf file$"):
        open_gguf(tmp_path)
    write_gguf(tmp_path / "a.gguf", {}, {})
    with pytest.raises(GGUFError, match="is a folder; name a file in it: a.gguf"):
        open_gguf(tmp_path)


def test_the_nearest_of_many_files_come_first(tmp_path):
    """Whatever their case; of many, how many are left out."""
    for i in range(30):
        write_gguf(tmp_path / f"other-{i:02}.gguf", {}, {})
    write_gguf(tmp_path / "Zephyr-Q4_0.gguf", {}, {})
    with pytest.raises(FileNotFoundError, match=r"has Zephyr-Q4_0.gguf, .* and 26 more$"):
        open_gguf(tmp_path / "zephyr-q4_0.gguf")


def test_a_type_that_is_newer_than_this_version(raw, open_bytes):
    message = r"'t', .64.: no ggml type has id 999; ids run from 0 to \d+: a newer type"
    with pytest.raises(GGUFError, match=message):
        open_bytes(raw.file([], [raw.tensor("t", [64], 999)], bytes(64)))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none/a.gguf; its folder does not"):
        open_gguf(tmp_path / "none" / "a.gguf")


def test_a_folder_of_safetensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(GGUFError, match="is a folder.* safetensors: convert it to GGUF"):
        open_gguf(tmp_path)


@pytest.mark.parametrize("parts", [["x" * 5000], ["y" * 5000, "x.gguf"], ["d/" * 2500]])
def test_long_names_are_shortened(parts):
    with pytest.raises(FileNotFoundError, match=r"no file .*\(\d,\d{3} characters\)") as caught:
        open_gguf("/".join(parts))
    assert len(str(caught.value)) < 500


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match="pipe.gguf is no regular file"):
        open_gguf(tmp_path / "pipe.gguf")


def test_paths_are_strings_or_paths(tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": 1}, {})
    assert (
        open_gguf(str(tmp_path / "a.gguf")).metadata["k"]
        == open_gguf(tmp_path / "a.gguf").metadata["k"]
        == 1
    )


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    metadata = {
        "general.architecture": "llama",
        "words": ["abc", "defg"],
        "numbers": list(range(5)),
    }
    write_gguf(
        path,
        metadata,
        {
            "x": ("F32", np.arange(6, dtype="float32").reshape(2, 3)),
            "y": ("Q8_0", np.zeros(34, "uint8")),
        },
    )
    return path


def test_a_file_that_shrinks_is_refused_not_fatal(model):
    file = open_gguf(model)
    os.truncate(model, file.tensors["y"].offset + 33)
    assert file.tensors["x"].data.shape == (2, 12)
    size = file.tensors["y"].offset + 33
    with pytest.raises(
        GGUFError,
        match=(
            f"model.gguf: the file shrank after it was opened: it has {size} bytes, {size + 1} are"
            " needed"
        ),
    ):
        file.tensors["y"].data  # noqa: B018
    os.truncate(model, 10)
    for read in (
        lambda: file.metadata["words"],
        lambda: file.architecture,
        lambda: file.tensors["x"].data,
    ):
        with pytest.raises(GGUFError, match="the file shrank after it was opened: it has 10 bytes"):
            read()


@pytest.mark.parametrize("change", [1, 2**40, 2**63, 2**64 - 1], ids=hex)
def test_strings_that_change_are_refused(model, change):
    file = open_gguf(model)
    start = file.metadata.entry("words").start
    with model.open("r+b") as changed:
        changed.seek(start)
        changed.write((3 ^ change).to_bytes(8, "little"))
    with pytest.raises(
        GGUFError,
        match=(
            r"'words': its strings no longer fill its 23 bytes: .* changed after .* \(at byte"
            rf" {start}\)"
        ),
    ):
        file.metadata["words"]


def test_close(model):
    with open_gguf(model) as file:
        data = file.tensors["x"].data
        assert file.metadata["words"] == ("abc", "defg")
    np.testing.assert_array_equal(data.view("float32"), [[0, 1, 2], [3, 4, 5]])
    assert file.metadata["words"] == ("abc", "defg")
    for read in (lambda: file.metadata["numbers"], lambda: file.tensors["x"].data):
        with pytest.raises(ValueError, match="model.gguf is closed: open it again"):
            read()
    file.close()


def test_data_is_read_only(model):
    with pytest.raises(ValueError, match="read-only"):
        open_gguf(model).tensors["x"].data[0, 0] = 1


def test_a_missing_tensor_names_the_nearest(model):
    tensors = open_gguf(model).tensors
    with pytest.raises(KeyError, match="no tensor 'xx'; the nearest are x"):
        tensors["xx"]
    assert tensors.get("xx") is None and tensors.get("xx", 3) == 3
    assert tensors.get("x") is tensors["x"]
    with pytest.raises(TypeError):
        tensors["x"] = None


def test_how_it_looks(model):
    file = open_gguf(model)
    assert (
        repr(file)
        == f"<GGUFFile {str(model)!r}: version 3, little endian, 3 keys, 2 tensors of 58 bytes>"
    )
    assert (
        repr(file.tensors["x"])
        == f"TensorInfo('x', F32 [2, 3], 24 bytes at {file.tensors['x'].offset})"
    )
    assert repr(file.metadata) == f"<Metadata of {model}: 3 keys>"
    assert (file.path, file.paths, file.tensors["x"].path) == (model, (model,), model)


@pytest.mark.parametrize("magic", [b"tjgg", b"ggjt", b"lmgg", b"fmgg"])
def test_files_of_old_llama_cpp_are_named(open_bytes, magic):
    with pytest.raises(GGUFError, match="old llama.cpp file from before GGUF.*convert the model"):
        open_bytes(magic + b"\3\0\0\0")


def test_a_newer_version_says_what_to_update(raw, open_bytes):
    with pytest.raises(GGUFError, match="version 9, .* 2 and 3: update rocmforge-jax"):
        open_bytes(raw.file(version=9))


def test_a_cut_file_says_how_many_bytes_are_missing(raw, open_bytes):
    whole = raw.file([], [raw.tensor("t", [64], 0)], bytes(256))
    with pytest.raises(GGUFError, match=rf" 7 of {len(whole)} bytes are missing: download it"):
        open_bytes(whole[:-7])
