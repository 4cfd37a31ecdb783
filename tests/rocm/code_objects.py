"""The AMD GPU code in a serialised executable: for which target it is, and what its kernels use."""

import dataclasses
import itertools
import re
import struct
from collections.abc import Iterator

import msgpack

from tests.rocm.riegeli import nested_records

_ELF64 = re.compile(rb"\x7fELF\x02\x01\x01")
_EM_AMDGPU, _SHT_PROGBITS, _SHT_NOTE, _NT_AMDGPU_METADATA = 224, 1, 7, 32
_SHF_EXECINSTR = 4
#: Upper half of the first word of a 4-way dot product of bytes with 32-bit sums: v_dot4_i32_i8 of
#: gfx9, v_dot4_i32_iu8 of gfx11 and gfx12.
_DOT4_I8, _DOT4_IU8 = 0xD3A8, 0xCC16
#: The upper three bits of its second word, in v_dot4_iu8: which operands are negated, that is
#: signed. The first two.
_BOTH_SIGNED = 0b011
#: Upper halves of the words of branches: s_branch and six conditional ones, of gfx9 and of later.
_BRANCHES = {0xBF82, *range(0xBF84, 0xBF8A), *range(0xBFA0, 0xBFA7)}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a code object says of a kernel (llvm.org/docs/AMDGPUUsage.html, code object V3 metadata
    and later).

    target: LLVM's triple with architecture and features. vgprs, sgprs, agprs: registers. lds: bytes
    of fixed local data share. spills: vector registers spilled; scratch: bytes of private memory a
    thread.
    """

    name: str
    target: str
    vgprs: int
    sgprs: int
    agprs: int
    lds: int
    spills: int
    scratch: int


def code_objects(executable: bytes) -> list[bytes]:
    """The different AMD GPU ELF files in a serialised executable."""
    found = {}
    for record in nested_records(executable):
        for match in _ELF64.finditer(record):
            start = match.start()
            if struct.unpack_from("<H", record, start + 18) != (_EM_AMDGPU,):
                continue
            offset, size, count = _section_table(record[start : start + 64])
            found[record[start : start + offset + size * count]] = None
    return list(found)


def target(code_object: bytes) -> str:
    """LLVM's triple with architecture and features."""
    return _metadata(code_object)["amdhsa.target"]


def kernels(code_object: bytes) -> Iterator[Kernel]:
    metadata = _metadata(code_object)
    for kernel in metadata["amdhsa.kernels"]:
        yield Kernel(
            name=kernel[".name"],
            target=metadata["amdhsa.target"],
            vgprs=kernel[".vgpr_count"],
            sgprs=kernel[".sgpr_count"],
            agprs=kernel.get(".agpr_count", 0),
            lds=kernel[".group_segment_fixed_size"],
            spills=kernel[".vgpr_spill_count"],
            scratch=kernel[".private_segment_fixed_size"],
        )


def signed_dot4s(code_object: bytes) -> int:
    """How many 4-way dot products of signed bytes its machine code holds (AMD's RDNA3 and CDNA3 ISA
    manuals, VOP3P).
    """
    count = 0
    for text in _machine_code(code_object):
        words = struct.unpack(f"<{len(text) // 4}I", text[: len(text) // 4 * 4])
        kinds = [(first >> 16, second >> 29) for first, second in itertools.pairwise(words)]
        count += sum(
            opcode == _DOT4_I8 or (opcode, signs) == (_DOT4_IU8, _BOTH_SIGNED)
            for opcode, signs in kinds
        )
    return count


def loop_bytes(code_object: bytes) -> int:
    """Bytes of machine code in its longest loop; 0 without one.

    A loop ends with a branch to before it: a word with one of 7 opcodes (gfx9, gfx11 and gfx12 in
    AMD's ISA manuals, SOPP), and the distance in words, negative, in its lower half.
    """
    longest = 0
    for text in _machine_code(code_object):
        words = struct.unpack(f"<{len(text) // 4}I", text[: len(text) // 4 * 4])
        for at, word in enumerate(words):
            back = 0x10000 - (word & 0xFFFF)
            if word >> 16 in _BRANCHES and word & 0x8000 and back <= at + 1:
                longest = max(longest, 4 * back)
    return longest


def _machine_code(elf) -> Iterator[bytes]:
    table, size, count = _section_table(elf)
    for entry in range(table, table + size * count, size):
        kind, flags = struct.unpack_from("<IQ", elf, entry + 4)
        start, length = struct.unpack_from("<QQ", elf, entry + 24)
        if kind == _SHT_PROGBITS and flags & _SHF_EXECINSTR:
            yield elf[start : start + length]


def _section_table(elf) -> tuple[int, int, int]:
    """(offset, bytes of an entry, entries)."""
    return struct.unpack_from("<Q", elf, 40) + struct.unpack_from("<HH", elf, 58)


def _metadata(elf) -> dict:
    table, size, count = _section_table(elf)
    for entry in range(table, table + size * count, size):
        (kind,) = struct.unpack_from("<I", elf, entry + 4)
        (note,) = struct.unpack_from("<Q", elf, entry + 24)
        if kind != _SHT_NOTE:
            continue
        name_bytes, data_bytes, note_type = struct.unpack_from("<III", elf, note)
        if note_type == _NT_AMDGPU_METADATA:
            start = note + 12 + -(-name_bytes // 4) * 4
            return msgpack.unpackb(elf[start : start + data_bytes])
    raise ValueError(f"an AMD GPU code object of {len(elf)} bytes has no metadata note")
