"""A second reader, from docs/gguf.md alone: slow, trusting, sharing nothing with the first.

What fuzzing compares with.
"""

import struct

import numpy as np
from gguf import GGML_QUANT_SIZES

from rocmforge_jax.gguf import GGUFError, open_gguf

CODES = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
# 42 is ggml's Q2_0, unknown to gguf 0.19.
SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} | {42: (64, 18)}


class PlainReader:
    """metadata: key -> bytes, a tuple of bytes, or an array.

    tensors: name -> (dims, type id, bytes).
    """

    def __init__(self, data):
        self.data, self.at, self.order = data, 4, "<"
        if self.number("I") % 65536 == 0:
            self.order = ">"
        tensor_count, key_count = self.number("Q"), self.number("Q")
        self.metadata = {
            self.string().decode(): self.value(self.number("I")) for _ in range(key_count)
        }
        table = [
            (self.string().decode(), self.dims(), self.number("I"), self.number("Q"))
            for _ in range(tensor_count)
        ]
        alignment = int(self.metadata.get("general.alignment", 32))
        start = (self.at + alignment - 1) // alignment * alignment
        self.tensors = {
            name: (dims, kind, self.blocks(dims, kind, start + offset))
            for name, dims, kind, offset in table
        }

    def number(self, code):
        (value,) = struct.unpack_from(self.order + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def string(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def dims(self):
        return [self.number("Q") for _ in range(self.number("I"))]

    def blocks(self, dims, kind, start):
        block, nbytes = SIZES[kind]
        for dim in dims:
            nbytes *= dim
        return self.data[start : start + nbytes // block]

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            kind, count = self.number("I"), self.number("Q")
            if kind == 8:
                return tuple(self.string() for _ in range(count))
            return np.array([self.number(CODES[kind]) for _ in range(count)], CODES[kind])
        return np.array(self.number(CODES[kind]), CODES[kind])


def check(path, data):
    """Write `data` to `path` and open it: whether it was refused.

    AssertionError where it was read wrongly.
    """
    path.write_bytes(data)
    try:
        with open_gguf(path) as file:
            metadata = dict(file.metadata)
            tensors = {
                name: (list(info.shape[::-1]), info.format.ggml_id, info.data.tobytes())
                for name, info in file.tensors.items()
            }
    except GGUFError:
        return True
    plain = PlainReader(data)
    assert list(metadata) == list(plain.metadata)
    for key, expected in plain.metadata.items():
        assert _same(metadata[key], expected), (key, metadata[key], expected)
    # Swapping the bytes of a block's members moves them only.
    order = bytes if plain.order == "<" else sorted
    assert list(tensors) == list(plain.tensors)
    for name, (*described, blocks) in plain.tensors.items():
        assert tensors[name][:2] == tuple(described)
        assert order(tensors[name][2]) == order(blocks)
    return False


def _same(value, expected):
    if isinstance(expected, bytes):
        return (value.encode() if isinstance(value, str) else value) == expected
    if isinstance(expected, tuple):
        return len(value) == len(expected) and all(map(_same, value, expected))
    return (
        np.array(value, expected.dtype).tobytes() == expected.tobytes()
        and np.shape(value) == expected.shape
    )
