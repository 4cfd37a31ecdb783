"""inspect: what a file says, for people and for programs."""

import json
import math

import numpy as np
import pytest

from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import DEMO

pytestmark = pytest.mark.core


def parameters(gguf):
    return sum(math.prod(tensor.shape) for tensor in gguf.tensors.values())


def nbytes(gguf):
    return sum(tensor.nbytes for tensor in gguf.tensors.values())


def test_json_holds_what_the_reader_reads(run):
    ran = run("inspect", DEMO, "--json")
    gguf, shown = open_gguf(DEMO), json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert {key: value for key, value in shown.items() if key not in ("metadata", "tensors")} == {
        "path": str(DEMO),
        "files": [str(DEMO)],
        "version": 3,
        "byte_order": "little",
        "alignment": 32,
        "parameters": parameters(gguf),
        "bytes": nbytes(gguf),
    }
    assert list(shown["metadata"]) == list(gguf.metadata)
    assert shown["metadata"]["llama.block_count"] == {
        "type": "uint32",
        "count": None,
        "value": gguf.metadata["llama.block_count"],
    }
    assert shown["metadata"]["tokenizer.ggml.tokens"] == {
        "type": "string",
        "count": len(gguf.metadata["tokenizer.ggml.tokens"]),
        "value": list(gguf.metadata["tokenizer.ggml.tokens"][:8]),
    }
    assert shown["metadata"]["tokenizer.ggml.token_type"]["value"] == [3] + [1] * 7
    expected = [
        (t.name, list(t.shape), t.format.name, t.offset, t.nbytes, str(DEMO))
        for t in gguf.tensors.values()
    ]
    assert [tuple(tensor.values()) for tensor in shown["tensors"]] == expected


def test_text_shows_keys_types_and_sizes(run):
    gguf, lines = open_gguf(DEMO), run("inspect", DEMO).out.splitlines()
    bits = 8 * nbytes(gguf) / parameters(gguf)
    assert lines[:3] == [
        str(DEMO),
        "GGUF version 3, little endian, alignment 32",
        (
            f"{parameters(gguf):,} parameters in {len(gguf.tensors)} tensors, {nbytes(gguf):,}"
            f" bytes, {bits:.2f} bits each"
        ),
    ]
    assert (
        f"  llama.block_count = {gguf.metadata['llama.block_count']}" in lines
        and "  tokenizer.ggml.model = 'gpt2'" in lines
    )
    q5_1 = [tensor.nbytes for tensor in gguf.tensors.values() if tensor.format.name == "Q5_1"]
    assert [line.split() for line in lines if line.startswith("  Q5_1")] == [
        ["Q5_1", f"{len(q5_1)}", "tensors", f"{sum(q5_1):,}", "bytes"]
    ]
    assert not any("attn_q" in line for line in lines)


def test_tensors_are_listed_when_asked_for(run):
    lines = run("inspect", DEMO, "--tensors").out.splitlines()
    listed = [tuple(line.split(maxsplit=2)) for line in lines[lines.index("tensors") + 1 :]]
    assert listed == [
        (tensor.name, tensor.format.name, str(list(tensor.shape)))
        for tensor in open_gguf(DEMO).tensors.values()
    ]


def test_demo_is_a_name_here_too(run):
    assert run("inspect", "demo").out == run("inspect", DEMO).out


@pytest.mark.parametrize("number, shown", [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_numbers_that_json_lacks_are_strings(run, tmp_path, number, shown):
    write_gguf(
        tmp_path / "a.gguf",
        {
            "general.architecture": "a",
            "x": np.float32(number),
            "xs": np.array([number], np.float32),
        },
        {},
    )
    metadata = json.loads(run("inspect", tmp_path / "a.gguf", "--json").out)["metadata"]
    assert (metadata["x"]["value"], metadata["xs"]["value"]) == (shown, [shown])


def test_control_characters_of_a_file_do_not_reach_the_terminal(run, tmp_path):
    write_gguf(
        tmp_path / "a.gguf",
        {"key\x1b[2J": "\x1b[31m\x07"},
        {"name\x1b[1A": ("F32", np.zeros(1, np.float32))},
    )
    out = run("inspect", tmp_path / "a.gguf", "--tensors").out
    assert "\x1b" not in out and "\x07" not in out
    assert r"key\x1b[2J = '\x1b[31m\x07'" in out and r"name\x1b[1A" in out


def test_text_that_is_no_utf8_is_shown_by_its_bytes(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": b"a\xff"}, {})
    assert (
        json.loads(run("inspect", tmp_path / "a.gguf", "--json").out)["metadata"]["k"]["value"]
        == r"a\xff"
    )


def test_a_long_value_is_cut(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": "x" * 1000}, {})
    (line,) = [
        line
        for line in run("inspect", tmp_path / "a.gguf").out.splitlines()
        if line.startswith("  k = ")
    ]
    assert line == "  k = '" + "x" * 76 + "..."


def test_a_file_without_tensors(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k": 1}, {})
    assert "0 parameters in 0 tensors, 0 bytes\n" in run("inspect", tmp_path / "a.gguf").out


DEMO_TENSORS = {name: (t.format, t.data) for name, t in open_gguf(DEMO).tensors.items()}


@pytest.fixture
def changed_demo(tmp_path):
    """changed_demo(keys, tensors): the demo with these keys and tensors changed; None drops one."""

    def changed_demo(keys=(), tensors=()):
        def keep(items):
            return {key: value for key, value in items.items() if value is not None}

        path = tmp_path / "demo.gguf"
        keys = keep(dict(open_gguf(DEMO).metadata) | dict(keys))
        write_gguf(path, keys, keep(DEMO_TENSORS | dict(tensors)))
        return path

    return changed_demo


def test_check_says_that_a_file_loads(run):
    ran = run("inspect", DEMO, "--check")
    assert (ran.code, ran.err) == (0, "") and ran.out.endswith("\nloads: yes\n")
    shown = json.loads(run("inspect", DEMO, "--check", "--json").out)
    assert (shown["loads"], shown["problems"], shown["notes"]) == (True, [], [])


def test_check_lists_everything_that_a_file_lacks(run, changed_demo):
    keys = {"tokenizer.ggml.model": "unheard-of"}
    tensors = dict.fromkeys(
        name for name in DEMO_TENSORS if name.endswith(("_q.weight", "_norm.weight"))
    )
    count = len(tensors) + 1
    path = changed_demo(keys, tensors)
    ran = run("inspect", path, "--check")
    assert ran.code == 2 and f"{path} does not load: {count} problems" in ran.err
    assert ran.err.count("\n") == 1
    assert all(f"  {name} [" in ran.out for name in tensors) and "'unheard-of'" in ran.out
    ran = run("inspect", path, "--check", "--json")
    shown = json.loads(ran.out)
    assert (ran.code, shown["loads"], len(shown["problems"])) == (2, False, count)


def test_check_notes_what_loading_warns_about(run, changed_demo):
    odd = {"llama.vocab_size": 7, "llama.new\x1b[2J": 1}
    ran = run("inspect", changed_demo(odd), "--check")
    assert ran.code == 0 and "\nloads: yes\n" in ran.out
    assert "  note: llama.vocab_size is 7" in ran.out
    assert r"not known here: llama.new\x1b[2J" in ran.out


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.type": "adapter"}, "  it is an adapter"),
        ({"general.architecture": "kimi-k2"}, "  the architecture 'kimi-k2' is not in this"),
        ({"llama.block_count": None, "llama.context_length": None}, "llama.context_length must"),
    ],
    ids=str,
)
def test_check_of_what_is_no_model(run, changed_demo, keys, message):
    ran = run("inspect", changed_demo(keys), "--check")
    assert ran.code == 2 and "\nloads: no\n" in ran.out and message in ran.out
    assert "1 problem, on stdout" in ran.err


def test_long_names_are_shortened(run, tmp_path):
    write_gguf(tmp_path / "a.gguf", {"k" * 5000: 1}, {})
    out = run("inspect", tmp_path / "a.gguf").out
    assert "k" * 300 + "... (5,000 characters) = 1" in out and "k" * 301 not in out


def test_a_name_that_is_too_long_for_a_file(run):
    ran = run("inspect", "x" * 5000)
    assert ran.code == 2 and "no file " in ran.err and len(ran.err) < 600
