"""Names, ids and sizes; how a format is looked up; what is refused."""

import dataclasses

import pytest

from rocmforge_jax import formats
from rocmforge_jax.formats import Codes, Field, Format, WordPacking

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
    with pytest.raises(ValueError, match="'Q4_KM'.* Q4_K"):
        formats.get("Q4_KM")


@pytest.mark.parametrize(("ggml_id", "name"), formats.REMOVED_IDS.items())
def test_a_removed_id_says_what_it_was(ggml_id, name):
    with pytest.raises(
        ValueError,
        match=f" {ggml_id} .* {name}",
    ):
        formats.get(ggml_id)


@pytest.mark.parametrize("ggml_id", [-1, 43, 2**32 - 1])
def test_an_unknown_id_says_the_range(ggml_id):
    with pytest.raises(ValueError, match=f" {ggml_id}; .* 0 to 42"):
        formats.get(ggml_id)


def test_rows_are_whole_blocks():
    with pytest.raises(ValueError, match="Q6_K .* 256 elements.* 300"):
        formats.get("Q6_K").row_bytes(300)
    with pytest.raises(ValueError, match="Q6_K .* 210 bytes.* 209 bytes"):
        formats.get("Q6_K").row_blocks(209)


def test_a_declaration_needs_a_meaning():
    with pytest.raises(ValueError, match="NEW: .* affine.* decode"):
        Format("NEW", None, 32, (Field("d", "float16"),))


def test_kernels_take_these_types():
    packed = {name for name, f in formats.FORMATS.items() if f.packing is not None}
    assert packed == set(
        "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS TQ2_0 Q2_0 MXFP4"
        " NVFP4".split()
    )


def test_tables_have_entries_of_one_sign_eight_apart():
    """As kernels see them; the declared order is that of the file's codes."""
    tables = {
        name: f.packing for name, f in formats.FORMATS.items() if f.packing and f.packing.table
    }
    assert {name: how.exchanged for name, how in tables.items()} == {
        "IQ4_NL": True,
        "IQ4_XS": True,
        "MXFP4": False,
        "NVFP4": False,
    }
    for how in tables.values():
        assert sorted(how.kernel_table) == sorted(how.table)
        assert all((how.kernel_table[i] < 0) == (how.kernel_table[i + 8] < 0) for i in range(8))
    assert (
        tables["IQ4_NL"].table[4:8] == tables["IQ4_NL"].kernel_table[8:12] == (-49, -35, -22, -10)
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Q4_0", {"block": 40}, "the packing of Q4_0: .* 40 .* 32"),
        ("Q4_0", {"block": 64}, "qs has 128 bits, 64 codes have 256"),
        ("Q4_0", {"codes": (Codes("qh", 4, 16),)}, r"\['d', 'qh'\].*\['d', 'qs'\]"),
        ("Q4_1", {"m": None}, r"\['d', 'qs'\].*\['d', 'm', 'qs'\]"),
        ("Q5_0", {"codes": (Codes("qs", 4, 16), Codes("qh", 3, 1))}, "7 bits"),
        ("Q5_0", {"d": "qh", "codes": (Codes("qs", 4, 16), Codes("d", 1, 1))}, r"qh is uint32\[\]"),
        ("Q6_K", {"scheme": "six bits"}, "'six bits'; there are bytes, six_bit_pairs, six_bits"),
        ("Q6_K", {"scheme": None}, r"'int8', scheme None and scale fields \['scales'\]"),
        ("Q6_K", {"scale": "int4"}, "'int4'; there are d, int8"),
        ("Q6_K", {"scale": "nibbles"}, "'nibbles' needs m"),
        ("Q6_K", {"scale": "e8m0"}, "'e8m0' has no d"),
        ("Q6_K", {"halves": 1}, "hold 16 scales of int8, the block has 8 of int8"),
        ("Q6_K", {"halves": 4}, "1 or 2 scales, not 4"),
        ("Q3_K", {"halves": 1}, "hold 16 scales of int8, the block has 8 of int8"),
        ("Q4_K", {"scale": "nibbles"}, "hold 8 scales of uint16, the block has 8 of uint8"),
        ("MXFP4", {"scale": "int8", "d": "e"}, "'e', 'e'"),
        ("IQ4_NL", {"table": (0,) * 15}, "15 entries for 4-bit codes"),
        ("IQ4_NL", {"table": (-1,) + (1,) * 15}, "i and i [+] 8 .* differ in sign"),
    ],
)
def test_a_packing_that_does_not_fit_its_block_is_refused(name, changes, message):
    """The message has the numbers of both."""
    f, of_format = formats.get(name), {k: v for k, v in changes.items() if k == "block"}
    of_packing = {k: v for k, v in changes.items() if k != "block"}
    packing = dataclasses.replace(f.packing, **of_packing)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(f, packing=packing, **of_format)


def test_all_that_is_wrong_with_a_packing_is_listed():
    f = formats.get("Q4_0")
    packing = WordPacking((Codes("qs", 7, 16),), scheme="none", scale="int8")
    with pytest.raises(ValueError, match="7 bits.*; .*'none'; .*; qs has 128 bits"):
        dataclasses.replace(f, packing=packing)


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
    with pytest.raises(ValueError, match=" 99; .* 0 to 42"):
        formats.get(99)
