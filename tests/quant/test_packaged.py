"""A library that an installed wheel brings along is used where the user has built none."""

import shutil
from pathlib import Path

import pytest

from rocmforge_jax.backends import cpp
from rocmforge_jax.cli import machine
from rocmforge_jax.cpp import build, library, packaged, stored
from rocmforge_jax.quant import matmul
from tests.conftest import HIDDEN


@pytest.fixture
def wheel_library(in_cpp, cpp_folder, tmp_path, monkeypatch) -> Path:
    """A library in the folder of the wheel; the user's own folder is there and empty."""
    known = build.find(Path(cpp_folder))
    used = library.load(known)
    monkeypatch.setattr(library, "load", lambda path: used)  # the same code: JAX takes it once
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "built")
    packaged.FOLDER.mkdir()
    copied = shutil.copy(known, tmp_path / "copy.so")
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path / "own"))
    return stored.put(Path(copied), packaged.FOLDER, "multiply")


def test_it_is_found_where_there_is_no_other(wheel_library, cpp_folder, monkeypatch):
    assert cpp.find() == wheel_library
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", HIDDEN)  # which does not exist
    assert cpp.find() == wheel_library
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", cpp_folder)
    assert cpp.find() == build.find(Path(cpp_folder))


def test_its_trials_are_remembered_in_the_users_folder(wheel_library, made, normal, tmp_path):
    x, (w, _) = normal(1, 96), made("Q4_0", 7, 3)
    matmul(x, w, backend="cpp")
    (file,) = (tmp_path / "own").glob("jax-*.passed")
    assert "bits=4" in file.read_text()
    assert not list(packaged.FOLDER.glob("*.passed"))


def test_doctor_knows_it(wheel_library):
    assert machine.gather().library == "complete"
    wheel_library.write_bytes(wheel_library.read_bytes()[:5000])
    assert machine.gather().library == "damaged"
    wheel_library.unlink()
    assert machine.gather().library == "missing"
