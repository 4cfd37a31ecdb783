"""The records of a Riegeli file, the container that XLA serialises executables in
(github.com/google/riegeli, doc/).
"""

import struct
from collections.abc import Iterator

#: The hash of a file's first block header: where a file begins.
MAGIC = bytes.fromhex("83af70d10d884a3f")
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 1 << 16, 24, 40


def nested_records(raw: bytes) -> Iterator[bytes]:
    """What lies before a Riegeli file in `raw`, and the file's records, taken apart in the same
    way; all of `raw` where it has none.

    A file's own bytes are left out: block headers cut what an uncompressed record holds.
    """
    start = raw.find(MAGIC)
    if start < 0:
        yield raw
        return
    yield raw[:start]
    for record in _records(raw[start:]):
        yield from nested_records(record)


def _records(file: bytes) -> Iterator[bytes]:
    chunks = b"".join(
        file[start + _BLOCK_HEADER : start + _BLOCK] for start in range(0, len(file), _BLOCK)
    )
    at = 0
    while at + _CHUNK_HEADER <= len(chunks):
        (size,) = struct.unpack_from("<Q", chunks, at + 8)
        kind, count = chunks[at + 24 : at + 25], int.from_bytes(chunks[at + 25 : at + 32], "little")
        data = chunks[at + _CHUNK_HEADER :][:size]
        if kind == b"r":
            yield from _simple_chunk(data, count)
        elif kind == b"t":
            raise ValueError("a transposed Riegeli chunk: XLA has not written those so far")
        elif kind not in b"smp":  # signature, metadata, padding
            return  # what follows the file
        at += _CHUNK_HEADER + max(size, count)


def _simple_chunk(data, count):
    compression = data[0]
    sizes_length, at = _varint(data, 1)
    sizes, values = (
        _decompress(compression, data[at : at + sizes_length]),
        _decompress(compression, data[at + sizes_length :]),
    )
    start = at = 0
    for _ in range(count):
        size, at = _varint(sizes, at)
        yield values[start : start + size]
        start += size


def _decompress(compression, data):
    if compression == 0:
        return data
    if compression != ord("s"):
        raise ValueError(
            f"Riegeli compression {chr(compression)!r}: only none and snappy, which XLA uses, are"
            " read here"
        )
    return _snappy(data[_varint(data, 0)[1] :])


def _varint(data, at) -> tuple[int, int]:
    """-> (the number, where it ends)."""
    number = shift = 0
    while True:
        byte, at = data[at], at + 1
        number, shift = number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, at


def _snappy(data) -> bytes:
    """github.com/google/snappy, format_description.txt."""
    length, at = _varint(data, 0)
    out = bytearray()

    def take(start, width):
        return int.from_bytes(data[start : start + width], "little")

    while at < len(data):
        tag, at = data[at], at + 1
        kind, rest = tag & 3, tag >> 2
        if kind == 0:
            width = max(rest - 59, 0)
            size = (take(at, width) if width else rest) + 1
            at += width + size
            out += data[at - size : at]
            continue
        width = (1, 2, 4)[kind - 1]
        size = (rest & 7) + 4 if kind == 1 else rest + 1
        offset = take(at, width) | (tag >> 5 << 8 if kind == 1 else 0)
        at += width
        for i in range(
            len(out) - offset, len(out) - offset + size
        ):  # a copy may overlap what it writes
            out.append(out[i])
    if len(out) != length:
        raise ValueError(f"snappy data of {length} bytes gave {len(out)}")
    return bytes(out)
