"""A file's blocks -> planes in C++: the same planes as XLA's, to the bit."""

import dataclasses
import itertools

import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.backends import cpp
from rocmforge_jax.cpp import huge_pages
from rocmforge_jax.cpp import repack as cpp_repack
from rocmforge_jax.formats import Codes, Field, Format, WordPacking
from rocmforge_jax.formats.scales import SCHEMES
from rocmforge_jax.quant import repack, word_packed
from rocmforge_jax.quant.layout import split
from tests.conftest import CORE_TYPES
from tests.heavy import some
from tests.quant.conftest import IN_GROUPS

pytestmark = pytest.mark.core


def random_rows(name, *lead, elements=1280, seed=0):
    """Any bytes are blocks. 1280 elements: 5 blocks of 256."""
    return np.random.default_rng(seed).integers(
        0, 256, (*lead, formats.get(name).row_bytes(elements)), np.uint8
    )


def quick_rows(name, which):
    return which == "of experts" or name in CORE_TYPES


@pytest.mark.parametrize(
    ("name", "which"),
    some(itertools.product(IN_GROUPS, ("of experts", "of several threads")), quick_rows),
)
def test_every_type(name, which, in_cpp):
    """Of several threads the last takes fewer rows."""
    fmt = formats.get(name)
    threads = 2 * cpp_repack.PIECE // fmt.row_bytes(1280) + 3
    rows = random_rows(name, *((3, 7) if which == "of experts" else (threads,)))
    made, expected = repack.planes_of(cpp.file(), rows, fmt), split(rows, fmt, "groups")
    assert made.keys() == expected.keys()
    for plane, like in expected.items():
        assert made[plane].dtype == like.dtype and made[plane].shape == like.shape
        np.testing.assert_array_equal(
            np.asarray(made[plane]).view(np.uint8), np.asarray(like).view(np.uint8)
        )


@pytest.mark.parametrize("name", IN_GROUPS)
def test_a_declaration_has_the_planes_of_the_kernels(name):
    assert formats.get(name).declared_packing.planes() == packing(name).planes()


def test_planes_are_not_copied_for_the_device(in_cpp):
    planes = cpp_repack.repack(
        cpp_library(),
        random_rows("Q4_K", 5),
        repack.blocks_of(formats.get("Q4_K")),
        packing("Q4_K"),
    )
    assert all(plane.ctypes.data % huge_pages.ALIGNMENT == 0 for plane in planes.values())


def test_rows_that_are_no_whole_blocks_are_refused(in_cpp):
    rows, blocks = random_rows("Q4_K", 5), repack.blocks_of(formats.get("Q4_K"))
    for wrong in (rows[:, 1:], rows.astype(np.int8), rows[:, ::2]):
        with pytest.raises(
            ValueError,
            match=rf"uint8, .* 144 bytes .* {wrong.dtype} \[5, ",
        ):
            cpp_repack.repack(cpp_library(), wrong, blocks, packing("Q4_K"))


def test_without_the_library_it_says_how_to_get_one():
    with pytest.raises(NotImplementedError, match="rocmforge-jax build-native"):
        cpp.file()


def test_offsets_are_those_of_the_fields():
    expected = 256, 210, ((0, 4, 64), (128, 2, 32)), 208, None, "bytes", 192, None, False
    assert dataclasses.astuple(repack.blocks_of(formats.get("Q6_K"))) == expected


def test_cpp_has_every_scheme_of_scales():
    """`test_every_type` compares what the two make of random bytes."""
    assert set(SCHEMES) == set(cpp_repack.SCALES) - {None}


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([("qs", 4, 4)], "qs has runs of 4 words, not of 1 or .* 8"),
        ([("low", 2, 8), ("qs", 1, 4), ("high", 1, 4)], "codes come from 3 fields, at most 2"),
        ([("low", 1, 1), ("qs", 4, 16)], r"qs has 4 bits of each code, not one of \(1, 2\)"),
    ],
)
def test_codes_that_cpp_cannot_repack_are_not_supported(codes, message):
    """A new format may have them: then XLA repacks."""
    fields = [
        Field("d", "float16"),
        *(Field(name, "uint8", (4 * bits,)) for name, bits, _ in codes),
    ]
    packing = WordPacking(tuple(Codes(*code) for code in codes))
    fmt = Format("NEW", None, 32, tuple(fields), decode=lambda **fields: None, packing=packing)
    with pytest.raises(NotImplementedError, match=f"NEW: {message}"):
        repack.blocks_of(fmt)


def cpp_library():
    return cpp.find()


def packing(name):
    return word_packed.packing(formats.get(name))
