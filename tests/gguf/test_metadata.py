"""What the metadata gives, and when."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError, open_gguf

pytestmark = pytest.mark.core


def test_types_and_lengths_without_decoding(raw, open_bytes):
    pairs = [
        raw.pair("n", "uint32", 1),
        raw.pair("s", "string", "x"),
        raw.array("a", "string", ["b"] * 3),
        raw.array("f", "float32", []),
    ]
    metadata = open_bytes(raw.file(pairs)).metadata
    described = {key: metadata.describe(key) for key in metadata}
    assert described == {
        "n": "uint32",
        "s": "string",
        "a": "array[string] x 3",
        "f": "array[float32] x 0",
    }
    assert (metadata.entry("a").type, metadata.entry("a").count, metadata.entry("n").count) == (
        "string",
        3,
        None,
    )


def test_strings_that_are_not_utf8_stay_bytes(raw, open_bytes):
    pairs = [
        raw.pair("s", "string", b"\xe2\x82"),
        raw.array("a", "string", ["€", b"\xe2\x82", "", "\0", "🙂"]),
    ]
    metadata = open_bytes(raw.file(pairs)).metadata
    assert (metadata["s"], metadata["a"]) == (b"\xe2\x82", ("€", b"\xe2\x82", "", "\0", "🙂"))


def test_values_are_kept_and_cannot_be_changed(raw, open_bytes):
    metadata = open_bytes(
        raw.file([raw.array("n", "int32", [1, 2]), raw.array("s", "string", ["a"])])
    ).metadata
    assert metadata["n"] is metadata["n"]
    assert isinstance(metadata["s"], tuple)
    with pytest.raises(ValueError, match="read-only"):
        metadata["n"][0] = 7
    with pytest.raises(TypeError):
        metadata["n"] = 7


def test_mapping(raw, open_bytes):
    metadata = open_bytes(
        raw.file([raw.pair("b", "bool", False), raw.pair("a", "int8", 2)])
    ).metadata
    assert (list(metadata), len(metadata), dict(metadata)) == (["b", "a"], 2, {"b": False, "a": 2})
    assert "b" in metadata and "c" not in metadata
    assert (metadata.get("a"), metadata.get("c"), metadata.get("c", 5)) == (2, None, 5)


def test_a_missing_key_names_the_nearest(raw, open_bytes):
    metadata = open_bytes(raw.file([raw.pair("llama.block_count", "uint32", 1)])).metadata
    for read in (metadata.__getitem__, metadata.describe, metadata.entry):
        with pytest.raises(
            KeyError, match="has no key 'llama.blockcount'; the nearest are llama.block_count"
        ):
            read("llama.blockcount")
    with pytest.raises(KeyError, match="has no key 'zzz'\""):
        metadata["zzz"]


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_booleans_are_0_or_1(raw, open_bytes, byte):
    pairs = [
        raw.string("b") + raw.pack("IB", 7, byte),
        raw.string("a") + raw.pack("IIQ4B", 9, 7, 4, 1, 0, byte, 1),
    ]
    pairs.append(raw.pair("c", "bool", True))
    metadata = open_bytes(raw.file(pairs)).metadata
    with pytest.raises(
        GGUFError, match=rf"'b': a boolean is the byte 0 or 1, byte 0 of 1 is {byte} \(at byte 37\)"
    ):
        metadata["b"]
    with pytest.raises(
        GGUFError, match=rf"'a': a boolean is the byte 0 or 1, byte 2 of 4 is {byte} \(at byte 63\)"
    ):
        metadata["a"]
    assert metadata["c"] is True


def test_architecture(raw, open_bytes):
    assert (
        open_bytes(raw.file([raw.pair("general.architecture", "string", "llama")])).architecture
        == "llama"
    )
    assert open_bytes(raw.file()).architecture is None


@pytest.mark.parametrize(
    ("kind", "value", "shown"), [("uint32", 7, "7"), ("string", b"\xff", r"b'\\xff'")]
)
def test_architecture_that_is_no_text(raw, open_bytes, kind, value, shown):
    file = open_bytes(raw.file([raw.pair("general.architecture", kind, value)]))
    with pytest.raises(GGUFError, match=f"general.architecture must be text, got {shown}"):
        file.architecture  # noqa: B018


def test_a_vocabulary_opens_and_decodes_fast(reference):
    """Goals: 80 ms to open, 250 ms and 100 MB to decode.

    The guards are at ten times the time; memory is exact.
    """
    path = reference / "tokenizers" / "ggml-vocab-qwen2.gguf"
    start = time.perf_counter()
    metadata = open_gguf(path).metadata
    opened = time.perf_counter()
    assert metadata.describe("tokenizer.ggml.tokens") == "array[string] x 151936"
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    decoded = time.perf_counter()
    assert (len(tokens), tokens[0], len(merges), merges[0]) == (151936, "!", 151387, "Ġ Ġ")
    assert (opened - start < 0.8, decoded - opened < 2.5) == (
        True,
        True,
    ), f"{opened - start:.3f} s, {decoded - opened:.3f} s"


def test_memory_of_a_vocabulary(reference):
    tracemalloc.start()
    metadata = open_gguf(reference / "tokenizers" / "ggml-vocab-llama-spm.gguf").metadata
    assert tracemalloc.get_traced_memory()[1] < 1e6, "opening decodes nothing"
    tokens = metadata["tokenizer.ggml.tokens"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tokens) == 32000
    assert peak < 100e6 * len(tokens) / 303_323, "100 MB for the tokens and merges of Qwen2"


def test_opening_needs_neither_jax_nor_the_gguf_package(reference):
    program = (
        "import sys; from rocmforge_jax.gguf import open_gguf\n"
        f"file = open_gguf({str(reference / 'models' / 'llama-gqa.Q4_0.gguf')!r})\n"
        "dict(file.metadata); [info.data.sum() for info in file.tensors.values()]\n"
        "print([name for name in ('jax', 'gguf') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_numbers_of_every_type_are_pythons(raw, open_bytes):
    pairs = [
        raw.pair("i", "uint64", 2**64 - 1),
        raw.pair("f", "float32", 0.1),
        raw.pair("b", "bool", True),
    ]
    metadata = open_bytes(raw.file(pairs)).metadata
    assert [type(metadata[key]) for key in "ifb"] == [int, float, bool]
    assert (metadata["i"], metadata["f"]) == (2**64 - 1, float(np.float32(0.1)))
