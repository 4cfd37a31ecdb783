"""build-native: compiles once, says what it found, and what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from rocmforge_jax.backends import cpp
from rocmforge_jax.cpp import build
from rocmforge_jax.cpp.library import Prefetch

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


def test_it_measures_again_where_that_is_wanted(run, in_cpp, monkeypatch):
    measured = {Prefetch(4096, 0): 9e9, Prefetch(2048, 16384): 12.3e9}
    monkeypatch.setattr(cpp, "tune", lambda packings: measured if list(packings) else {})
    ran = run("build-native", "--tune", "--json")
    assert "2048 bytes ahead into L1 and 16384 bytes ahead into L2: 12.3 GB/s" in ran.err
    assert json.loads(ran.out)["prefetch"].keys() == {"l1", "l2"}


@pytest.fixture
def copied(in_cpp, cpp_folder, empty, monkeypatch):
    """A copy of the library in a folder of its own, and a compiler that copies it there again."""
    built = build.find_complete(Path(cpp_folder))
    script = 'for last; do :; done\ncase "$*" in *-shared*) cp {} "$last";; *-o*) echo > "$last";;'
    compiler(empty, f"{script.format(built)} esac", monkeypatch)
    folder = empty / "cpp"
    folder.mkdir()
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(folder))
    # JAX knows the same code already, and tries it in other tests.
    monkeypatch.setattr(cpp, "instructions", lambda: "these")
    monkeypatch.setattr(cpp, "try_all", lambda packings: None)
    monkeypatch.setattr(cpp, "tune", lambda packings: {})
    return Path(shutil.copy(built, folder))


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("size", [0, 5000])
def test_a_damaged_library_is_replaced(run, copied, size, force):
    data = copied.read_bytes()
    copied.write_bytes(data[:size])
    ran = run("build-native", "--json", *force)
    assert ran.code == 0 and "compiling the C++ library" in ran.err
    library = Path(json.loads(ran.out)["library"])
    assert library.read_bytes() == data and library.parent == copied.parent
    assert list(copied.parent.glob("*.so")) == [library]


def test_what_is_complete_is_compiled_again_only_by_force(run, copied):
    first = copied.stat().st_mtime_ns
    ran = run("build-native", "--json")
    assert json.loads(ran.out)["library"] == str(copied) and ran.err == ""
    assert copied.stat().st_mtime_ns == first
    ran = run("build-native", "--json", "--force")
    assert "compiling" in ran.err and build.find(copied.parent).stat().st_mtime_ns > first


def test_a_folder_that_cannot_be_written_is_one_line(run, copied, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", "/dev/null/cpp")
    ran = run("build-native")
    assert ran.code == 2 and "/dev/null/cpp: Not a directory; ROCMFORGE_CPP_FOLDER" in ran.err
    assert "compiling" not in ran.err and "ROCMFORGE_CPP_FOLDER is /dev/null" in run("doctor").out
    ran = run("build-native", "--if-possible")
    assert (ran.code, ran.out) == (0, "") and "/dev/null/cpp: Not a directory" in ran.err


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


def test_of_a_compiler_that_says_much_the_last_five_lines_are_quoted(run, empty, monkeypatch):
    text = "case $1 in --version) echo 1.0;; *) seq -f line%03g 100 >&2; exit 3;; esac"
    compiler(empty, text, monkeypatch)
    err = run("build-native").err
    assert all(f"line{i:03}" in err for i in range(96, 101)) and "line095" not in err


@pytest.mark.parametrize("text", ["exit 1", "echo broken; exit 7"])
def test_a_compiler_that_does_not_start_is_noticed_before_compiling(run, empty, monkeypatch, text):
    compiler(empty, text, monkeypatch)
    ran = run("build-native")
    assert ran.code == 2 and "failed with exit code" in ran.err and "compiling" not in ran.err


def test_without_a_compiler(run, empty, monkeypatch):
    monkeypatch.setenv("CXX", str(empty / "none"))
    ran = run("build-native")
    assert ran.code == 2 and "error: no C++ compiler" in ran.err and "compiling" not in ran.err
    ran = run("build-native", "--if-possible")
    assert (
        ran.code == 0
        and ran.out == ""
        and "not built, plain XLA computes instead: no C++ compiler" in ran.err
    )
    assert not cpp.usable()
