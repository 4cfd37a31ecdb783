"""The C++ library is compiled, found, and there completely or not at all."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rocmforge_jax.cpp import build, stored
from rocmforge_jax.cpp import library as cpp_library
from rocmforge_jax.cpp.commands import BuildError
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP

#: Stands in for a compiler: notes its arguments, and "links" by copying a library.
COMPILER = """#!/bin/sh
for word in "$@"; do last=$word; done
case "$*" in
  *--version*) {version} ;;
  *-shared*) echo linked >> {log}; {link} ;;
  *-o*) echo "$*" >> {log}; {compile} ;;
esac
"""


@pytest.fixture
def compiler(tmp_path, monkeypatch, library):
    """compiler(link=script, ...): CXX names a script that runs these; returns its log."""

    def made(folder="tools", arguments="", **scripts):
        path, log = tmp_path / folder / "c++", tmp_path / "log"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # it may still run
        defaults = {
            "version": "echo 1.0",
            "compile": 'echo object > "$last"',
            "link": f'cp {library[0]} "$last"',
        }
        path.write_text(COMPILER.format(log=log, **defaults | scripts))
        path.chmod(0o755)
        monkeypatch.setenv("CXX", f"{shlex.quote(str(path))} {arguments}")
        return log

    return made


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "libraries of mine, größer"


def names(folder):
    """What is in a folder besides the lock."""
    return [path for path in folder.glob("*") if path.name != ".lock"]


def linked(log):
    return log.read_text().splitlines().count("linked")


#: Builds into the folder that is named, in a process of its own. The background jobs of a shell
#: ignore SIGINT, as do the processes that they start.
PROGRAM = """
import resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from rocmforge_jax.cpp import build
try:
    {before}
    build.build(sys.argv[1])
except build.BuildError as error:
    sys.exit(str(error))
"""


def started(folder, before="pass"):
    program = [sys.executable, "-c", PROGRAM.format(before=before), str(folder)]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_built_is_found_without_a_compiler(library, cpp_folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.compiler() is None
    assert build.find(cpp_folder) == build.find_complete(cpp_folder) == library[0]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("no-such-compiler", "no C.. compiler: .*'no-such-compiler'"),
        ("false", "false failed with exit code 1"),
        ('c++ "', "'c.. \"': No closing quotation"),
    ],
)
def test_a_compiler_that_cannot_be_used(folder, monkeypatch, named, reason):
    monkeypatch.setenv("CXX", named)
    with pytest.raises(BuildError, match=reason):
        build.build(folder)
    assert not folder.exists() and build.find(folder) is None


def test_a_program_of_another_machine_is_no_compiler(folder, tmp_path, monkeypatch):
    (program := tmp_path / "c++").write_bytes(b"\x7fELF and no more")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    with pytest.raises(BuildError, match="cannot be started: Exec format error"):
        build.build(folder)


@pytest.mark.parametrize("name", ["tools", "tools of mine", "werkzeug größer"])
def test_a_compiler_with_arguments(compiler, folder, name):
    log = compiler(name, "--launcher 'two words'")
    built = build.build(folder)
    assert build.find(folder) == built and built.parent == folder
    compiled = [line for line in log.read_text().splitlines() if "-c " in line]
    assert len(compiled) >= 5
    assert all(line.startswith("--launcher two words ") for line in compiled)


def test_a_path_with_spaces_needs_no_quotes(compiler, folder, tmp_path, monkeypatch):
    compiler("tools of mine")
    monkeypatch.setenv("CXX", str(tmp_path / "tools of mine" / "c++"))
    assert build.compiler() == (str(tmp_path / "tools of mine" / "c++"),)
    assert build.build(folder) == build.find(folder)


def test_arguments_of_the_compiler_make_another_library(compiler, folder):
    compiler()
    plain = build.build(folder)
    compiler(arguments="-O1")
    assert build.build(folder) != plain


def test_a_library_runs_on_every_processor_of_a_shared_home(compiler, folder):
    """Arguments like -march=native do not bind it to the one that compiled it."""
    log = compiler(arguments="-march=native")
    build.build(folder)
    compiled = [line.split() for line in log.read_text().splitlines() if "-march=native" in line]
    if os.uname().machine == "x86_64":
        assert compiled and all(
            [word for word in line if word.startswith("-march=")][-1] == "-march=x86-64"
            for line in compiled
        )


def test_odd_flags_in_the_environment_change_nothing(compiler, folder, monkeypatch):
    compiler()
    monkeypatch.setenv("CXXFLAGS", "-march=nothing '")
    monkeypatch.setenv("LDFLAGS", "-lnothing")
    assert build.build(folder).is_file()


def test_a_warning_of_the_compiler_makes_no_other_library(compiler, folder):
    compiler(version="echo 1.0; date +%N >&2", compile='echo object > "$last"; echo hm >&2')
    assert build.build(folder) == build.build(folder)


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ({"compile": "true"}, r"c\+\+ ended with exit code 0 but wrote nothing to 0.o"),
        ({"link": "true"}, "wrote nothing to multiply.so"),
        ({"link": ': > "$last"'}, "wrote nothing to multiply.so"),
        ({"link": 'echo text > "$last"'}, "does not load .*invalid ELF|file too short"),
        ({"compile": "echo 'line 7: no' >&2; exit 3"}, "failed with exit code 3:\nline 7: no"),
        ({"compile": "kill -9 $$"}, "was ended by SIGKILL"),
        ({"version": "echo no license >&2; exit 4"}, "failed with exit code 4:\nno license"),
        ({"compile": r"printf '\377\n' >&2; exit 1"}, "failed with exit code 1:\n\ufffd"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(compiler, folder, scripts, reason):
    compiler(**scripts)
    with pytest.raises(BuildError, match=reason):
        build.build(folder)
    assert names(folder) == [] and build.find(folder) is None


def test_a_library_for_another_machine_is_not_kept(compiler, folder, library, tmp_path):
    other = bytearray(library[0].read_bytes())
    other[18:20] = b"\x2a\x00"  # e_machine: SuperH
    (tmp_path / "other.so").write_bytes(other)
    compiler(link=f'cp {tmp_path / "other.so"} "$last"')
    with pytest.raises(BuildError, match="does not load on this machine: OSError"):
        build.build(folder)
    assert names(folder) == []


@pytest.mark.parametrize("step", ["version", "compile"])
def test_a_compiler_that_hangs_is_ended_with_what_it_started(
    compiler, folder, tmp_path, monkeypatch, step
):
    monkeypatch.setattr(build, "ANSWER_LIMIT", 0.5 if step == "version" else 30.0)
    monkeypatch.setattr(build, "COMPILE_LIMIT", 0.5)
    log = compiler(**{step: f"sleep 1000 & echo $! >> {tmp_path / 'started'}; wait"})
    with pytest.raises(BuildError, match="did not end within [01] s"):
        build.build(folder)
    pids = (tmp_path / "started").read_text().split()
    assert pids and (not log.exists() or linked(log) == 0)
    wait_for(lambda: not any(Path("/proc", pid).exists() for pid in pids))


@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "text"])
def test_a_damaged_library_is_not_loaded_and_replaced(compiler, folder, library, damage):
    log = compiler()
    built = build.build(folder)
    data = built.read_bytes()
    built.write_bytes(
        {
            "empty": b"",
            "cut": data[: len(data) // 3],
            "changed": data[:-77] + b"x" + data[-76:],
            "text": b"text",
        }[damage]
    )
    size = built.stat().st_size
    with pytest.raises(OSError, match=f"{built.name} is damaged: it has {size} bytes"):
        cpp_library.load(built)
    assert build.find(folder) == built and build.find_complete(folder) is None
    assert build.build(folder) == built and built.read_bytes() == data
    assert build.find_complete(folder) == built and linked(log) == 2


def test_damaged_ones_of_other_compilers_go_too(compiler, folder):
    compiler(arguments="-O1")
    build.build(folder).write_bytes(b"text")
    compiler()
    built = build.build(folder)
    assert names(folder) == [built]


def test_force_compiles_again(compiler, folder):
    log = compiler()
    assert build.build(folder) == build.build(folder) and linked(log) == 1
    assert build.build(folder, force=True) == build.find(folder) and linked(log) == 2


def test_of_two_builders_one_compiles(compiler, folder, library):
    log = compiler(link=f'sleep 0.5; cp {library[0]} "$last"')
    threads = [threading.Thread(target=build.build, args=(folder,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert linked(log) == 1 and names(folder) == [build.find_complete(folder)]


def test_without_locks_each_builds_for_itself(compiler, folder, monkeypatch):
    compiler()
    monkeypatch.setattr(build, "fcntl", None)
    assert build.build(folder) == build.find_complete(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_builder_that_is_ended_leaves_nothing_that_the_next_one_minds(compiler, folder, number):
    log = compiler(compile="sleep 10 & wait")
    process = started(folder)
    wait_for(log.exists)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert build.find(folder) is None and bool(names(folder)) == (number == signal.SIGKILL)
    compiler()
    build.build(folder)
    assert names(folder) == [build.find_complete(folder)]


def test_a_full_disk_is_said_and_leaves_nothing(compiler, folder):
    compiler()
    process = started(folder, "resource.setrlimit(resource.RLIMIT_FSIZE, (99_999, 99_999))")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in error
    assert "File too large" in error or "SIGXFSZ" in error or "exit code 153" in error
    assert names(folder) == []


@pytest.mark.parametrize("inside", ["", "below", "x" * 300])
def test_a_folder_that_cannot_be_written(compiler, tmp_path, inside):
    compiler()
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / inside
    with pytest.raises(BuildError, match=f"{tmp_path / 'file'}.*: .*ROCMFORGE_CPP_FOLDER"):
        build.build(folder)
    assert build.find(folder) is None


def test_a_library_in_a_folder_that_is_read_only_is_used(compiler, folder):
    compiler()
    built = build.build(folder)
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()  # which nobody can open to write, root included
    assert build.build(folder) == built
    with pytest.raises(BuildError, match="Is a directory"):
        build.build(folder, force=True)


def test_a_file_that_vanishes_is_not_complete(folder):
    assert not stored.is_complete(folder / "multiply-0-0.so")
