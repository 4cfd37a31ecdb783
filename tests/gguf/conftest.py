"""GGUF files written byte by byte: every field can be wrong."""

import importlib.util
import struct
from pathlib import Path

import pytest

from rocmforge_jax.gguf import open_gguf

TYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "float32",
    "bool",
    "string",
    "array",
    "uint64",
    "int64",
    "float64",
)
CODES = dict(zip(TYPES, "BbHhIif?  Qqd", strict=True))


class Raw:
    """Builds the parts of a file in one byte order.

    The numbers are what the caller says, right or wrong.
    """

    def __init__(self, order="<"):
        self.order = order

    def pack(self, codes, *values):
        return struct.pack(self.order + codes, *values)

    def string(self, text, length=None):
        raw = text.encode() if isinstance(text, str) else text
        return self.pack("Q", len(raw) if length is None else length) + raw

    def pair(self, key, kind, value):
        """A key with a number, bool or string; a wrong `key` is given as its packed string."""
        payload = self.string(value) if kind == "string" else self.pack(CODES[kind], value)
        return self.string(key) + self.pack("I", TYPES.index(kind)) + payload

    def array(self, key, kind, values, count=None):
        payload = b"".join(
            self.string(value) if kind == "string" else self.pack(CODES[kind], value)
            for value in values
        )
        count = len(values) if count is None else count
        return (
            self.string(key)
            + self.pack("IIQ", TYPES.index("array"), TYPES.index(kind), count)
            + payload
        )

    def tensor(self, name, dims, type_id=0, offset=0, rank=None):
        """A row of the tensor table; `dims` in GGUF's order, the fastest first."""
        return self.string(name) + self.pack(
            f"I{len(dims)}QIQ", len(dims) if rank is None else rank, *dims, type_id, offset
        )

    def file(
        self,
        pairs=(),
        tensors=(),
        data=b"",
        *,
        magic=b"GGUF",
        version=3,
        keys=None,
        count=None,
        alignment=32,
    ):
        head = (
            magic
            + self.pack("I", version)
            + self.pack("Q", len(tensors) if count is None else count)
        )
        head += (
            self.pack("Q", len(pairs) if keys is None else keys)
            + b"".join(pairs)
            + b"".join(tensors)
        )
        return head + bytes(-len(head) % alignment) + data


@pytest.fixture(scope="session")
def raw():
    return Raw()


@pytest.fixture(scope="session")
def raw_big_endian():
    return Raw(">")


@pytest.fixture
def open_bytes(tmp_path):
    """Bytes -> the open file that holds them."""

    def open_bytes(data):
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return open_gguf(path)

    return open_bytes


@pytest.fixture(scope="session")
def small_file(raw):
    """A valid file with a value of every kind and three tensors, without a byte to spare at its
    end.
    """
    numbers = [
        raw.pair(kind[:4] + kind[-1], kind, 1) for kind in TYPES if kind not in ("string", "array")
    ]
    strings = [
        raw.pair("s", "string", "text"),
        raw.array("a", "string", ["b", "", b"\xff"]),
        raw.array("n", "int16", [1, -1, 2]),
    ]
    tensors = [
        raw.tensor("t", [4, 2], 0, 0),
        raw.tensor("u", [32], 2, 32),
        raw.tensor("v", [2, 1, 2], 26, 64),
    ]
    return raw.file(
        [*numbers, *strings, raw.array("b", "bool", [True, False])], tensors, bytes(range(80))
    )


@pytest.fixture(scope="session")
def check():
    """plain_reader.check: path, data -> whether open_gguf refuses the data.

    It must not read it differently.
    """
    spec = importlib.util.spec_from_file_location(
        "gguf_plain_reader", Path(__file__).with_name("plain_reader.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check
