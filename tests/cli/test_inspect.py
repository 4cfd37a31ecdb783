"""inspect: what a file says, for people and for programs."""

import json

import numpy as np
import pytest

from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import DEMO

pytestmark = pytest.mark.core


def test_json_holds_what_the_reader_reads(run):
    ran = run("inspect", DEMO, "--json")
    gguf, shown = open_gguf(DEMO), json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert {key: value for key, value in shown.items() if key not in ("metadata", "tensors")} == {
        "path": str(DEMO), "files": [str(DEMO)], "version": 3, "byte_order": "little", "alignment": 32,
        "parameters": 2885888, "bytes": sum(tensor.nbytes for tensor in gguf.tensors.values()),
    }  # fmt: skip
    assert list(shown["metadata"]) == list(gguf.metadata)
    assert shown["metadata"]["llama.block_count"] == {"type": "uint32", "count": None, "value": 4}
    assert shown["metadata"]["tokenizer.ggml.tokens"] == {
        "type": "string", "count": 1024, "value": list(gguf.metadata["tokenizer.ggml.tokens"][:8])
    }  # fmt: skip
    assert shown["metadata"]["tokenizer.ggml.token_type"] == {"type": "int32", "count": 1024, "value": [3] + [1] * 7}
    expected = [(t.name, list(t.shape), t.format.name, t.offset, t.nbytes, str(DEMO)) for t in gguf.tensors.values()]
    assert [tuple(tensor.values()) for tensor in shown["tensors"]] == expected


def test_text_shows_keys_types_and_sizes(run):
    lines = run("inspect", DEMO).out.splitlines()
    assert lines[:3] == [
        str(DEMO),
        "GGUF version 3, little endian, alignment 32",
        "2,885,888 parameters in 38 tensors, 2,089,984 bytes, 5.79 bits each",
    ]
    assert "  llama.block_count = 4" in lines and "  tokenizer.ggml.model = 'gpt2'" in lines
    assert [line.split() for line in lines if line.startswith("  Q5_1")] == [["Q5_1", "8", "tensors", "688,128", "bytes"]]
    assert not any("attn_q" in line for line in lines)


def test_tensors_are_listed_when_asked_for(run):
    lines = [line.split(maxsplit=2) for line in run("inspect", DEMO, "--tensors").out.splitlines()]
    assert ["blk.0.attn_k.weight", "Q5_0", "[64, 256]"] in lines and ["token_embd.weight", "Q8_0", "[1024, 256]"] in lines


def test_demo_is_a_name_here_too(run):
    assert run("inspect", "demo").out == run("inspect", DEMO).out


@pytest.mark.parametrize("number, shown", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_numbers_that_json_lacks_are_strings(run, tmp_path, number, shown):
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "a", "x": np.float32(number), "xs": np.array([number], np.float32)}, {})
    metadata = json.loads(run("inspect", tmp_path / "a.gguf", "--json").out)["metadata"]
    assert (metadata["x"]["value"], metadata["xs"]["value"]) == (shown, [shown])


def test_control_characters_of_a_file_do_not_reach_the_terminal(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"key\x1b[2J": "\x1b[31m\x07"}, {"name\x1b[1A": ("F32", np.zeros(1, np.float32))})
    out = run("inspect", tmp_path / "a.gguf", "--tensors").out
    assert "\x1b" not in out and "\x07" not in out
    assert r"key\x1b[2J = '\x1b[31m\x07'" in out and r"name\x1b[1A" in out


def test_text_that_is_no_utf8_is_shown_by_its_bytes(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": b"a\xff"}, {})
    assert json.loads(run("inspect", tmp_path / "a.gguf", "--json").out)["metadata"]["k"]["value"] == r"a\xff"


def test_a_long_value_is_cut(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": "x" * 1000}, {})
    (line,) = [line for line in run("inspect", tmp_path / "a.gguf").out.splitlines() if line.startswith("  k = ")]
    assert line == "  k = '" + "x" * 76 + "..."


def test_a_file_without_tensors(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": 1}, {})
    assert "0 parameters in 0 tensors, 0 bytes\n" in run("inspect", tmp_path / "a.gguf").out
