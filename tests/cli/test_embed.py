"""embed: vectors as lines of JSON."""

import io
import json
import re
import sys

import numpy as np
import pytest

import rocmforge_jax

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def vectors():
    lm = rocmforge_jax.load("demo", progress=False)
    return lm.embed(["ROMEO: what light?", "a\tb"], pooling="mean")


def test_each_text_is_a_line(run, vectors):
    ran = run("embed", "demo", "ROMEO: what light?", "a\tb", "--pooling", "mean")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0 and [line["text"] for line in lines] == ["ROMEO: what light?", "a\tb"]
    np.testing.assert_array_equal(np.float32([line["embedding"] for line in lines]), vectors)


def test_lines_of_stdin(run, vectors, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"ROMEO: what light?\na\tb\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    ran = run("embed", "demo", "--pooling", "mean", "--no-normalize")
    lines = [json.loads(line)["embedding"] for line in ran.out.splitlines()]
    lengths = np.linalg.norm(lines, axis=1, keepdims=True)
    assert (lengths > 1.01).all()
    np.testing.assert_allclose(lines / lengths, vectors, atol=1e-6)


def test_a_vector_of_each_token(run):
    ran = run("embed", "demo", "ROMEO", "--pooling", "none")
    (line,) = ran.out.splitlines()
    assert np.ndim(json.loads(line)["embedding"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "llama names no pooling"),
        (["a", "--pooling", "rank"], "no classifier"),
        (["b " * 400, "--pooling", "mean", "--context-length", "99"], "tokens.* 99: "),
    ],
)
def test_what_cannot_be_embedded_is_a_line_on_stderr(run, words, message):
    ran = run("embed", "demo", *words)
    assert (ran.code, ran.out) == (2, "") and ran.err.count("\n") == 1
    assert re.search(message, ran.err)


def test_no_text_at_all(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    ran = run("embed", "demo", "--pooling", "mean")
    assert ran.code == 2 and "stdin has no lines" in ran.err
