"""build-native: compiles once, says what it found, and what is missing."""

import json
from pathlib import Path

import pytest

from rocmforge_jax.backends import cpp

pytestmark = pytest.mark.core


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Nothing is built, and the compiler is a script that takes part of what it is asked for."""
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path / "cpp"))
    return tmp_path


def compiler(folder, text, monkeypatch):
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))


def test_what_is_built_is_found(run, in_cpp, cpp_folder):
    answer = json.loads(run("build-native", "--json").out)
    assert Path(answer["library"]).parent == Path(cpp_folder) and answer["instructions"]
    out = run("build-native")
    assert (
        out.code == 0
        and out.out == f"{answer['library']}: {answer['instructions']}\n"
        and out.err == ""
    )


def test_a_compiler_that_fails_is_quoted(run, empty, monkeypatch):
    compiler(
        empty,
        "case $1 in --version) echo 1.0;; *) echo 'no such header: xla/ffi/api/ffi.h'; exit 3;;"
        " esac",
        monkeypatch,
    )
    ran = run("build-native")
    assert ran.code == 2 and "failed with exit code 3: no such header: xla/ffi/api/ffi.h" in ran.err
    assert "compiling the C++ library" in ran.err
    assert ran.out == "" and not list((empty / "cpp").glob("*.so"))


def test_without_a_compiler(run, empty, monkeypatch):
    monkeypatch.setenv("CXX", str(empty / "none"))
    ran = run("build-native")
    assert ran.code == 2 and "error: no C++ compiler" in ran.err
    ran = run("build-native", "--if-possible")
    assert (
        ran.code == 0
        and ran.out == ""
        and "not built, plain XLA computes instead: no C++ compiler" in ran.err
    )
    assert not cpp.usable()
