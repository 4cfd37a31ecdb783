"""Models in several files."""

import shutil

import gguf
import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError, open_gguf, write_gguf

pytestmark = pytest.mark.core
NAMES = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


THREE_FILES, FIVE_TENSORS = np.uint16(3), np.int32(5)


def write_part(path, number, *, count=THREE_FILES, total=FIVE_TENSORS, tensors=(), **metadata):
    keys = {"split.no": np.uint16(number), "split.count": count, "split.tensors.count": total}
    keys = {key: value for key, value in keys.items() if value is not None}
    write_gguf(
        path,
        metadata | keys,
        {name: ("F32", np.full(4, value, "float32")) for name, value in tensors},
    )


@pytest.fixture
def split(tmp_path):
    """Three files with the tensors a to e, as llama.cpp's gguf-split lays them out."""
    write_part(
        tmp_path / NAMES[0], 0, tensors=[("a", 0), ("b", 1)], **{"general.architecture": "llama"}
    )
    write_part(tmp_path / NAMES[1], 1, tensors=[("c", 2), ("d", 3)])
    write_part(tmp_path / NAMES[2], 2, tensors=[("e", 4)])
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_any_file_opens_all(split, name):
    file = open_gguf(split / name)
    assert (file.path, file.paths) == (split / name, tuple(split / each for each in NAMES))
    assert (file.architecture, list(file.tensors)) == ("llama", list("abcde"))
    for value, info in enumerate(file.tensors.values()):
        np.testing.assert_array_equal(info.data.view("float32"), np.full(4, value, "float32"))
    assert [info.path.name for info in file.tensors.values()] == [NAMES[0]] * 2 + [NAMES[1]] * 2 + [
        NAMES[2]
    ]
    assert "3 files" in repr(file)
    file.close()
    for name in "ace":
        with pytest.raises(ValueError, match="is closed"):
            file.tensors[name].data  # noqa: B018


def test_files_of_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for value, name in enumerate("abcde"):
        writer.add_tensor(name, np.full(4, value, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = open_gguf(tmp_path / NAMES[1]).tensors
    assert [info.data.view("float32")[0] for info in tensors.values()] == [0, 1, 2, 3, 4]


def test_a_relative_path(split, monkeypatch):
    monkeypatch.chdir(split)
    assert list(open_gguf(NAMES[2]).tensors) == list("abcde")


def test_siblings_of_a_link_are_beside_the_link(split, tmp_path):
    """As in the cache of the Hugging Face hub, where the files themselves have other names
    elsewhere.
    """
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, name in enumerate(NAMES):
        (split / name).rename(blobs / str(number))
        (split / name).symlink_to(blobs / str(number))
    assert list(open_gguf(split / NAMES[1]).tensors) == list("abcde")


def test_siblings_are_not_looked_for_elsewhere(split, monkeypatch, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(split / NAMES[1], alone)
    monkeypatch.chdir(split)
    with pytest.raises(
        GGUFError, match=f"2 of the model's 3 files are not in its folder: {NAMES[0]}, {NAMES[2]}"
    ):
        open_gguf(alone / NAMES[1])


def test_a_renamed_file_says_which_name_it_needs(split):
    (split / NAMES[0]).rename(split / "renamed.gguf")
    message = (
        "renamed.gguf: split.count says that the model is in 3 files, so this one must be named"
        " NAME-NUMBER-of-00003.gguf"
    )
    with pytest.raises(GGUFError, match=message):
        open_gguf(split / "renamed.gguf")


def test_a_name_of_another_count(split):
    (split / NAMES[0]).rename(split / "m-00001-of-00004.gguf")
    with pytest.raises(GGUFError, match="must be named NAME-NUMBER-of-00003.gguf"):
        open_gguf(split / "m-00001-of-00004.gguf")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"number": 2},
            (
                "m-00002-of-00003.gguf: by its name split.no is 1 and split.count 3, the file says"
                " 2 and 3"
            ),
        ),
        (
            {"number": 1, "count": np.uint16(4)},
            "by its name split.no is 1 and split.count 3, the file says 1 and 4",
        ),
        (
            {"number": 1, "count": None},
            "by its name split.no is 1 and split.count 3, the file says 1 and None",
        ),
        (
            {"number": 1, "tensors": [("c", 2)]},
            "m-00001-of-00003.gguf: split.tensors.count is 5, the model's 3 files have 4 tensors",
        ),
        (
            {"number": 1, "tensors": [("c", 2), ("a", 3)]},
            "m-00002-of-00003.gguf: tensor 'a' is also in .*m-00001-of-00003.gguf",
        ),
    ],
)
def test_parts_that_do_not_fit(split, part, message):
    write_part(split / NAMES[1], part.pop("number"), **{"tensors": [("c", 2), ("d", 3)]} | part)
    with pytest.raises(GGUFError, match=message):
        open_gguf(split / NAMES[0])


def test_swapped_files(split):
    (split / NAMES[1]).rename(split / "other")
    (split / NAMES[2]).rename(split / NAMES[1])
    (split / "other").rename(split / NAMES[2])
    with pytest.raises(
        GGUFError,
        match=(
            "m-00002-of-00003.gguf: by its name split.no is 1 and split.count 3, the file says 2"
            " and 3"
        ),
    ):
        open_gguf(split / NAMES[0])


def test_a_damaged_sibling_is_named(split):
    path = split / NAMES[2]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(GGUFError, match=f"{NAMES[2]}: .* bytes are left|{NAMES[2]}: .* are left"):
        open_gguf(split / NAMES[0])


@pytest.mark.parametrize("key", ["split.count", "split.no", "split.tensors.count"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [("3", "string"), (3.0, "float32"), (True, "bool"), ([3], r"array\[int32\] x 1")],
)
def test_split_keys_are_integers(split, key, value, kind):
    keys = {"split.no": 0, "split.count": 3, "split.tensors.count": 5} | {key: value}
    write_gguf(split / NAMES[0], keys, {name: ("F32", np.zeros(1, "float32")) for name in "ab"})
    with pytest.raises(GGUFError, match=f"{key} must be an integer, got {kind}"):
        open_gguf(split / NAMES[0])


@pytest.mark.parametrize("count", [513, 65535, 2**64 - 1])
def test_absurd_counts(split, count):
    write_part(split / NAMES[0], 0, count=np.uint64(count))
    with pytest.raises(
        GGUFError, match=f"split.count says that the model is in {count} files, the most is 512"
    ):
        open_gguf(split / NAMES[0])


def test_one_part_is_a_whole_model(tmp_path):
    write_part(tmp_path / "any.gguf", 0, count=np.uint16(1), total=np.int32(1), tensors=[("a", 0)])
    assert list(open_gguf(tmp_path / "any.gguf").tensors) == ["a"]
