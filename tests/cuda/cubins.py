"""The NVIDIA GPU code in a serialised executable: what its kernels use."""

import re
import struct
from typing import NamedTuple

from tests.rocm.riegeli import nested_records

_ELF64, _EM_CUDA = re.compile(rb"\x7fELF\x02\x01"), 190
#: Attributes of the section .nv.info, each with a symbol's index and a number.
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F
#: The form of an attribute whose value has a size.
_SIZED = 4


class Kernel(NamedTuple):
    """registers and stack, the bytes of memory in their place, of a thread."""

    registers: int
    stack: int


def kernels(executable: bytes) -> dict[str, Kernel]:
    """By name; the largest numbers where a name comes twice."""
    found = {}
    for record in nested_records(executable):
        for match in _ELF64.finditer(record):
            elf = record[match.start() :]
            if struct.unpack_from("<H", elf, 18) == (_EM_CUDA,):
                for name, kernel in _kernels(elf):
                    found[name] = Kernel(*map(max, zip(kernel, found.get(name, kernel))))
    return found


def _kernels(elf):
    sections = _sections(elf)
    attributes = {_FRAME_SIZE: {}, _REGISTERS: {}}
    for attribute, value in _attributes(sections[".nv.info"]):
        if attribute in attributes:
            symbol, number = struct.unpack("<II", value)
            attributes[attribute][symbol] = number
    for symbol, registers in attributes[_REGISTERS].items():
        (name,) = struct.unpack_from("<I", sections[".symtab"], 24 * symbol)
        yield _string(sections[".strtab"], name), Kernel(registers, attributes[_FRAME_SIZE].get(symbol, 0))


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
