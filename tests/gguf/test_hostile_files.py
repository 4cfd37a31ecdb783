"""Files that nobody should trust: each is refused with a GGUFError, or read as a plain reader reads
it.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocmforge_jax.gguf import GGUFError

pytestmark = pytest.mark.core


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "file.gguf"


def test_the_small_file_is_right(check, scratch, small_file):
    assert not check(scratch, small_file)


def test_every_truncation_is_refused(check, scratch, small_file):
    for length in range(len(small_file)):
        assert check(scratch, small_file[:length]), (
            f"the first {length} of {len(small_file)} bytes were accepted"
        )


def test_every_bit_of_the_header(check, scratch, small_file):
    header = len(small_file) - 80
    accepted = 0
    for bit in range(8 * header):
        data = bytearray(small_file)
        data[bit // 8] ^= 1 << bit % 8
        accepted += not check(scratch, bytes(data))
    # A boolean has one bit that may change freely.
    values = 8 * (1 + 1 + 2 + 2 + 4 + 4 + 4 + 8 + 8 + 8 + len("text") + 2 + 3 * 2) + 3
    assert values < accepted < 8 * header / 2, "any value is right, most other bits are structure"


@pytest.mark.parametrize("kind", ["uint8", "uint16", "bool", "uint64", "float64", "string"])
@pytest.mark.parametrize(
    "count", [2**30, 2**31, 2**32 - 1, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 1]
)
def test_array_lengths_in_a_tiny_file(raw, open_bytes, kind, count):
    data = raw.file([raw.array("k", kind, [], count=count)], alignment=1)
    assert len(data) == 49
    with pytest.raises(
        GGUFError,
        match=(
            rf"'k'.* needs \d+ bytes, 0 are left.*\(at byte 49\)|has {count} strings.* the most is"
            r" 2097152"
        ),
    ):
        open_bytes(data)


@pytest.mark.parametrize(
    "length", [2**30, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
)
def test_string_lengths(raw, open_bytes, length):
    for data in (
        raw.file([raw.string("k") + raw.pack("IQ", 8, length)]),
        raw.file(
            [raw.array("k", "string", [], count=3) + raw.string("a") + raw.pack("QQ", length, 0)]
        ),
    ):
        with pytest.raises(
            GGUFError, match=rf"string [01] of 'k' needs {length} bytes, \d+ are left"
        ):
            open_bytes(data)


@pytest.mark.parametrize("depth", [2, 3, 64, 1000, 200_000])
def test_nested_arrays(raw, open_bytes, depth):
    nest = struct.pack("<IQ", 9, 1) * (depth - 1) + struct.pack("<IQ", 0, 1)
    with pytest.raises(
        GGUFError, match="'k' is an array of arrays, which ggml does not read either"
    ):
        open_bytes(raw.file([raw.string("k") + raw.pack("I", 9) + nest + b"\1"]))


@pytest.mark.parametrize("offset", [2**64 - 32, 2**64 - 64, 2**63, 2**63 - 32, 2**32, 64])
def test_offsets_beyond_the_file(raw, open_bytes, offset):
    data = raw.file([], [raw.tensor("t", [8], 0, offset)], bytes(64))
    start = len(data) - 64
    with pytest.raises(
        GGUFError,
        match=(
            f"'t', F32 .8., has 32 bytes that end at byte {start + offset + 32}, the file has"
            f" {len(data)}"
        ),
    ):
        open_bytes(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage(check, scratch, small_file, data):
    """Overwrite, insert, remove and repeat runs of bytes, preferring values that matter in a
    header.
    """
    damaged = bytearray(small_file)
    numbers = [struct.pack("<Q", n) for n in (0, 1, 7, 8, 9, 42, 2**31, 2**32, 2**63, 2**64 - 1)]
    interesting = st.sampled_from(numbers) | st.binary(max_size=9)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged)))
        stop = data.draw(st.integers(start, min(start + 9, len(damaged))))
        damaged[start:stop] = data.draw(interesting)
    check(scratch, bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(tail=st.binary(max_size=200), keys=st.integers(0, 3), tensors=st.integers(0, 3))
def test_random_bytes_after_a_right_header(check, scratch, raw, tail, keys, tensors):
    check(scratch, raw.file(keys=keys, count=tensors, alignment=1) + tail)
