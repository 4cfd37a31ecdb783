"""tokenize: ids and bytes of a text."""

import io
import json
import sys

import pytest

from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import DEMO
from rocmforge_jax.text import load_tokenizer

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DEMO)


@pytest.mark.parametrize("text", ["ROMEO: what light?", "héllo \U0001f600", "", "a\nb"])
def test_json_gives_the_ids_of_the_library(run, tokenizer, text):
    ran = run("tokenize", "demo", text, "--json")
    ids = tokenizer.encode(text)
    assert (ran.code, ran.err, json.loads(ran.out)["ids"]) == (0, "", ids)
    assert json.loads(ran.out)["pieces"] == [
        tokenizer.piece(id).decode("utf-8", "backslashreplace") for id in ids
    ]


def test_text_gives_a_token_a_line(run, tokenizer):
    rows = [line.split(maxsplit=1) for line in run("tokenize", "demo", "ROMEO: é").out.splitlines()]
    ids = tokenizer.encode("ROMEO: é")
    assert [int(id) for id, _ in rows] == ids
    assert rows[-1][1] in (r"'\\xa9'", "'é'", "' é'")


def test_special_tokens_are_read_only_when_asked_for(run):
    words = "tokenize", "demo", "<|endoftext|>", "--json"
    assert json.loads(run(*words, "--parse-special").out)["ids"] == [0]
    assert len(json.loads(run(*words).out)["ids"]) > 1


def test_tokens_that_begin_a_text_are_added_when_asked_for(run, reference):
    path = reference / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    plain, added = (
        json.loads(run("tokenize", path, "a", "--json", *more).out)["ids"]
        for more in ([], ["--add-special"])
    )
    assert added == [1, *plain]


def test_a_minus_reads_stdin(run, tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from here\n")))
    assert json.loads(run("tokenize", "demo", "-", "--json").out)["ids"] == tokenizer.encode(
        "from here\n"
    )


def test_text_that_is_no_unicode_is_refused(run):
    ran = run("tokenize", "demo", "\udcff")
    assert (ran.code, ran.out) == (2, "") and "invalid start byte at byte 0" in ran.err


def test_stdin_that_is_no_text_is_refused(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    ran = run("tokenize", "demo", "-")
    assert (ran.code, ran.err) == (
        2,
        "rocmforge-jax: error: stdin is not UTF-8 text: invalid start byte at byte 2\n",
    )


def test_a_warning_is_a_line_on_stderr(process, tmp_path):
    keys = {
        key: value for key, value in open_gguf(DEMO).metadata.items() if key != "tokenizer.ggml.pre"
    }
    write_gguf(tmp_path / "a.gguf", keys, {})
    ran = process("tokenize", tmp_path / "a.gguf", "a")
    out, err = ran.communicate(timeout=60)
    assert (ran.returncode, len(out.splitlines())) == (0, 1)
    assert (
        err.startswith("rocmforge-jax: warning: the file has no tokenizer.ggml.pre")
        and err.count("\n") == 1
    )
