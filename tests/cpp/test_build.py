"""The C++ library is compiled and found."""

import pytest

from rocmforge_jax.cpp import build
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP


def test_what_is_built_is_found_without_a_compiler(library, cpp_folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.compiler() is None
    assert build.find(cpp_folder) == library[0]


def test_a_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="false failed with exit code 1"):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir()) and build.find(tmp_path) is None


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RuntimeError,
        match="no C.. compiler: the variable CXX names 'no-such-compiler', which is not found",
    ):
        build.build(tmp_path)
