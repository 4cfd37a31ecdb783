"""Reading executables as XLA writes them: what the check of compiled code rests on."""

import struct

import msgpack
import pytest

from tests.rocm import code_objects
from tests.rocm.riegeli import MAGIC, nested_records

pytestmark = pytest.mark.core

AMDGPU, X86_64 = 224, 62
METADATA = {
    "amdhsa.target": "amdgcn-amd-amdhsa--gfx1100",
    "amdhsa.kernels": [
        {
            ".name": "fusion",
            ".vgpr_count": 42,
            ".sgpr_count": 16,
            ".group_segment_fixed_size": 2048,
            ".vgpr_spill_count": 3,
            ".private_segment_fixed_size": 12,
        }
    ],
}


def riegeli(*records, kind=b"r", compression=0, compress=bytes):
    """A Riegeli file of one chunk."""
    sizes = compress(
        b"".join(
            bytes([len(r) & 127 | 128, len(r) >> 7 & 127 | 128, len(r) >> 14]) for r in records
        )
    )
    data = bytes([compression, len(sizes)]) + sizes + compress(b"".join(records))
    chunk = (
        struct.pack("<QQQ", 0, len(data), 0)
        + kind
        + len(records).to_bytes(7, "little")
        + bytes(8)
        + data
    )
    room = (1 << 16) - 24
    blocks = [chunk[start : start + room] for start in range(0, len(chunk), room)]
    return b"".join(
        (MAGIC if i == 0 else b"\xee" * 8) + bytes(16) + block for i, block in enumerate(blocks)
    )


def snappy(data):
    """Stored as one literal, after the length that Riegeli puts before it. Up to 127 bytes."""
    return bytes([len(data), len(data), 60 << 2, len(data) - 1]) + data


def elf(machine=AMDGPU, note_type=32, padding=0, code=b""):
    """An ELF file of two sections, a note that holds METADATA and machine code."""
    note = (
        struct.pack("<III", 7, len(packed := msgpack.packb(METADATA)), note_type)
        + b"AMDGPU\0\0"
        + packed
    )
    text = 64 + padding + len(note)
    table = text + len(code)
    header = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, table, 0, 64, 0, 0, 64, 2, 0)
    )
    sections = struct.pack("<IIQQQQ", 0, 7, 0, 0, 64 + padding, len(note)) + bytes(24)
    sections += struct.pack("<IIQQQQ", 0, 1, 6, 0, text, len(code)) + bytes(24)
    return header + bytes(padding) + note + code + sections


def test_a_code_object_across_blocks_of_a_nested_file_is_found_once():
    code = elf(padding=150_000)
    executable = b"proto" + riegeli(b"other", riegeli(b"head" + code + b"tail"))
    assert code_objects.code_objects(executable) == [code]


def test_code_for_the_host_is_no_code_object():
    assert code_objects.code_objects(elf(machine=X86_64)) == []


def test_the_metadata_of_kernels():
    (kernel,) = code_objects.kernels(elf())
    assert code_objects.target(elf()) == "amdgcn-amd-amdhsa--gfx1100"
    assert (kernel.name, kernel.vgprs, kernel.sgprs, kernel.agprs) == ("fusion", 42, 16, 0)
    assert (kernel.lds, kernel.spills, kernel.scratch) == (2048, 3, 12)


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("", 0),
        ("0040a8d3 01050e1c", 1),  # v_dot4_i32_i8 v0, v1, v2, v3
        ("004016cc 01050e7c", 1),  # v_dot4_i32_iu8 v0, v1, v2, v3 neg_lo:[1,1,0]
        ("004016cc 01050e1c", 0),  # of unsigned bytes
        ("0040a9d3 01050e1c", 0),  # v_dot4_u32_u8 v0, v1, v2, v3
        ("0040a8d3 01050e1c 010080bf 0440a8d3 05050e1c", 2),
    ],
)
def test_dot_products_are_counted(code, count):
    assert code_objects.signed_dot4s(elf(code=bytes.fromhex(code))) == count


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("", 0),
        ("000080bf 0000fcbf feff84bf 0000fcbf", 8),  # s_cbranch_scc0, two words back from behind it
        ("000080bf 000080bf fdff86bf ffff82bf", 12),  # s_cbranch_vccz and s_branch
        ("000080bf 000080bf fdffa4bf", 12),  # s_cbranch_vccnz of gfx11
        ("000080bf 000080bf fbff84bf 020084bf", 0),  # before the code, which is data; and forward
    ],
)
def test_the_bytes_of_the_longest_loop(code, count):
    assert code_objects.loop_bytes(elf(code=bytes.fromhex(code))) == count


def test_a_code_object_without_metadata_is_refused():
    with pytest.raises(ValueError, match=f"of {len(elf())} bytes has no metadata note"):
        code_objects.target(elf(note_type=1))


def test_records_compressed_with_snappy():
    assert list(
        nested_records(riegeli(b"one", b"three", compression=ord("s"), compress=snappy))
    ) == [b"", b"one", b"three"]


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        # A copy with an 11-bit offset that overlaps what it writes.
        (
            b"\x0c\x08abc\x15\x03",
            b"abc" * 4,
        ),
        (b"\x06\x08abc\x0a\x03\x00", b"abcabc"),  # a 16-bit offset
        (b"\x06\x08abc\x0b\x03\x00\x00\x00", b"abcabc"),  # a 32-bit offset
    ],
)
def test_snappy_copies(compressed, plain):
    def compress(data):
        return bytes([len(plain)]) + compressed if data == plain else snappy(data)

    assert list(nested_records(riegeli(plain, compression=ord("s"), compress=compress))) == [
        b"",
        plain,
    ]


def test_a_wrong_length_of_snappy_data_is_refused():
    def compress(data):
        return bytes([4, 4, 60 << 2, len(data) - 1]) + data

    with pytest.raises(ValueError, match="snappy data of 4 bytes gave 3"):
        list(nested_records(riegeli(b"abc", compression=ord("s"), compress=compress)))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"compression": ord("z")}, "compression 'z'"), ({"kind": b"t"}, "transposed")],
)
def test_what_xla_does_not_write_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        list(nested_records(riegeli(b"record", **change)))
