"""The NVIDIA GPU code in a serialised executable: what its kernels use."""

import re
import struct
from typing import NamedTuple

from tests.rocm.riegeli import nested_records

_ELF64, _EM_CUDA = re.compile(rb"\x7fELF\x02\x01"), 190
#: Attributes of the section .nv.info, each with a symbol's index and a number.
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
#: Of Hopper's `griddepcontrol.launch_dependents` and `griddepcontrol.wait`, as nvdisasm names them.
_PREEXIT, _ACQBULK = 0x82D, 0x82E
#: The form of an attribute whose value has a size.
_SIZED = 4


class Kernel(NamedTuple):
    """registers and stack, the bytes of memory in their place, of a thread.

    lets_next_begin: it has the instruction that lets the next launch begin early; waits: that which
    waits for the end of the launch before.
    """

    registers: int
    stack: int
    lets_next_begin: bool
    waits: bool

    def or_worse(self, other: "Kernel") -> "Kernel":
        return Kernel(*map(max, self[:3], other[:3]), min(self.waits, other.waits))


def kernels(executable: bytes) -> dict[str, Kernel]:
    """By name; the worse of each where a name comes twice."""
    found = {}
    for record in nested_records(executable):
        for match in _ELF64.finditer(record):
            elf = record[match.start() :]
            if struct.unpack_from("<H", elf, 18) == (_EM_CUDA,):
                for name, kernel in _kernels(elf):
                    found[name] = kernel.or_worse(found.get(name, kernel))
    return found


def _kernels(elf):
    sections = _sections(elf)
    attributes = {_FRAME_SIZE: {}, _REGISTERS: {}}
    for attribute, value in _attributes(sections[".nv.info"]):
        if attribute in attributes:
            symbol, number = struct.unpack("<II", value)
            attributes[attribute][symbol] = number
    for symbol, registers in attributes[_REGISTERS].items():
        (start,) = struct.unpack_from("<I", sections[".symtab"], 24 * symbol)
        name = _string(sections[".strtab"], start)
        found = _operations(sections[f".text.{name}"])
        yield (
            name,
            Kernel(
                registers,
                attributes[_FRAME_SIZE].get(symbol, 0),
                _PREEXIT in found,
                _ACQBULK in found,
            ),
        )


def _operations(code) -> set[int]:
    """The lowest 12 bits of instructions of 16 bytes, which say what they do."""
    return {word & 0xFFF for word, _ in struct.iter_unpack("<QQ", code)}


def _sections(elf) -> dict[str, bytes]:
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    rows = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    contents = [elf[offset : offset + length] for *_, offset, length in rows]
    return {_string(contents[names], row[0]): content for row, content in zip(rows, contents)}


def _attributes(info):
    at = 0
    while at < len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _SIZED:
            yield attribute, info[at : at + value]
            at += value


def _string(table, start) -> str:
    return table[start : table.index(b"\0", start)].decode()
