"""A compiled library is loaded and asked what it has."""

import jax.numpy as jnp
import pytest

from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax import formats
from rocmforge_jax.cpp import library as cpp_library
from rocmforge_jax.cpp import products
from rocmforge_jax.quant import word_packed
from tests.cpp.conftest import NEEDS_CPP

pytestmark = NEEDS_CPP


def test_instructions(library):
    path, fastest = library
    names = cpp_library.instructions(path)
    assert names[0] == fastest and names[-1] in ("NEON", "plain C++")
    with pytest.raises(
        ValueError, match="'AMX9' is none of the instructions of this processor: .*(NEON|plain C)"
    ):
        cpp_library.use(path, "AMX9")


def test_forms_are_those_of_the_packings_that_formats_have(library, instructions):
    """There is code for each of them, and for no other."""
    needed = {
        cpp_library.Form(p.bits, p.table is not None, p.halves, p.minimum)
        for p in word_packed.packings()
    }
    assert cpp_library.forms.__wrapped__(library[0]) == needed


def test_a_file_that_is_no_library(tmp_path):
    (path := tmp_path / "no.so").write_text("text")
    with pytest.raises(OSError, match="no.so"):
        cpp_library.load(path)


def test_nothing_is_multiplied_before_a_library_is_loaded(library, monkeypatch):
    assert cpp_library.loaded() == library[0]
    packing = word_packed.packing(formats.get("Q4_0"))
    weight = Weight({"codes": jnp.zeros((8, 4, 2), jnp.uint32)}, packing)
    monkeypatch.setattr(cpp_library, "_registered", None)
    with pytest.raises(RuntimeError, match="no C.. library is loaded"):
        products.multiply(jnp.ones((1, 64)), [Product((weight,))], mode="int16")
