"""What tests of the C++ library need."""

import jax
import pytest

from rocmforge_jax.cpp import build

NEEDS_CPP = pytest.mark.skipif(
    build.compiler() is None or jax.default_backend() != "cpu",
    reason="needs a C++ compiler, and jax to compute on the CPU",
)
