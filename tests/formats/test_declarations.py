"""Names, ids and sizes; how a format is looked up; what is refused."""

import dataclasses

import pytest

from rocmforge_jax import formats
from rocmforge_jax.formats import Field, Format

pytestmark = pytest.mark.core

# ggml's own sizes of the types without reference values: (id, elements, bytes).
OTHERS = {
    "F32": (0, 1, 4),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "Q8_1": (9, 32, 36),
    "Q8_K": (15, 256, 292),
    "MXFP6_E2M3": (None, 32, 25),
    "MXFP6_E3M2": (None, 32, 25),
}


def test_sizes_are_those_of_the_reference(ggml):
    declared = formats.get(ggml.name)
    assert declared.ggml_id == ggml.stated["ggml_type"]
    assert declared.block == ggml.stated["block"]
    assert declared.block_bytes == ggml.stated["bytes"]


@pytest.mark.parametrize("name", OTHERS)
def test_sizes_of_the_other_types(name):
    declared = formats.get(name)
    assert (declared.ggml_id, declared.block, declared.block_bytes) == OTHERS[name]


def test_there_are_37_formats_with_distinct_ids():
    ids = [f.ggml_id for f in formats.FORMATS.values() if f.ggml_id is not None]
    assert len(formats.FORMATS) == 37 and len(ids) == len(set(ids)) == 35


@pytest.mark.parametrize("which", ["q5_1", "Q5_1", 7, formats.FORMATS["Q5_1"]])
def test_a_format_is_found_by_name_in_any_case_by_id_and_by_itself(which):
    assert formats.get(which) is formats.FORMATS["Q5_1"]


def test_sizes_of_rows_and_elements():
    q5_1 = formats.get("Q5_1")
    assert (q5_1.row_bytes(64), q5_1.row_blocks(48), q5_1.bits_per_element, q5_1.is_quantized) == (
        48,
        2,
        6.0,
        True,
    )
    assert not formats.get("BF16").is_quantized


def test_mxfp6_has_no_place_among_ggml_ids():
    assert [formats.get(i).name for i in (20, 21, 22)] == ["IQ4_NL", "IQ3_S", "IQ2_S"]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="no format is named 'Q4_KM'; the nearest are Q4_K"):
        formats.get("Q4_KM")


@pytest.mark.parametrize(("ggml_id", "name"), formats.REMOVED_IDS.items())
def test_a_removed_id_says_what_it_was(ggml_id, name):
    with pytest.raises(
        ValueError,
        match=f"ggml type {ggml_id} was {name}, which ggml no longer has: convert the model again",
    ):
        formats.get(ggml_id)


@pytest.mark.parametrize("ggml_id", [-1, 43, 2**32 - 1])
def test_an_unknown_id_says_the_range(ggml_id):
    with pytest.raises(ValueError, match=f"no ggml type has id {ggml_id}; ids run from 0 to 42"):
        formats.get(ggml_id)


def test_rows_are_whole_blocks():
    with pytest.raises(ValueError, match="a Q6_K row is whole blocks of 256 elements, got 300"):
        formats.get("Q6_K").row_bytes(300)
    with pytest.raises(ValueError, match="a Q6_K row is whole blocks of 210 bytes, got 209 bytes"):
        formats.get("Q6_K").row_blocks(209)


def test_a_declaration_needs_a_meaning():
    with pytest.raises(ValueError, match="NEW: give affine, decode or both"):
        Format("NEW", None, 32, (Field("d", "float16"),))


def test_registered_names_and_ids_are_distinct_and_names_are_in_capitals():
    q4_0 = formats.get("Q4_0")
    for changes, message in (
        ({}, "'Q4_0'"),
        ({"name": "new", "ggml_id": None}, "'new'"),
        ({"name": "NEW"}, "Q4_0 .* 2"),
    ):
        with pytest.raises(ValueError, match=message):
            formats.register(dataclasses.replace(q4_0, **changes))
    assert "NEW" not in formats.FORMATS and formats.get(2) is q4_0


def test_a_registered_format_is_found_by_its_id_until_it_is_removed():
    new = dataclasses.replace(formats.get("Q4_0"), name="NEW", ggml_id=99)
    formats.register(new)
    try:
        assert formats.get("new") is formats.get(99) is new
    finally:
        formats.unregister(new)
    with pytest.raises(ValueError, match="99; ids run from 0 to 42"):
        formats.get(99)
