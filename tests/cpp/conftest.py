"""What tests of the C++ library need."""

import jax
import pytest

from rocmforge_jax.cpp import build
from rocmforge_jax.cpp import library as cpp_library

NEEDS_CPP = pytest.mark.skipif(
    build.compiler() is None or jax.default_backend() != "cpu",
    reason="needs a C++ compiler, and jax to compute on the CPU",
)


@pytest.fixture(scope="session")
def library(cpp_folder):
    """The compiled library, loaded, and the instructions that it chose."""
    path = build.build(cpp_folder)
    return path, cpp_library.load(path)


@pytest.fixture(params=["AMX", "AVX-512 VNNI", "AVX2 VNNI", "AVX2", "NEON", "plain C++"])
def instructions(request, library):
    """Each set of instructions that this processor has, used for the length of a test."""
    path, fastest = library
    if request.param not in cpp_library.instructions(path):
        pytest.skip(f"this processor has no {request.param}, or the compiler does not know it")
    cpp_library.use(path, request.param)
    yield request.param
    cpp_library.use(path, fastest)
