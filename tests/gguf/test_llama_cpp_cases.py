"""The cases of llama.cpp's tests/test-gguf.cpp under its names, and those that a reader of ours
needs beyond them.
"""

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError

pytestmark = pytest.mark.core
F32, I8, I64, Q4_0 = 0, 24, 27, 2
BLOCK = bytes(range(32))


def aligned(raw, kind, value):
    return raw.file([raw.pair("general.alignment", kind, value)])


def key(raw, packed):
    """A file whose first key-value pair is `packed`."""
    return raw.file([packed, raw.pair("next", "uint32", 1)])


def tensor(raw, *args, **more):
    return raw.file([], [raw.tensor(*args, **more)], BLOCK)


REFUSED = {
    "HEADER_BAD_MAGIC": (
        lambda raw: raw.file(magic=b"FUGG"),
        "is not a GGUF file.*it begins with b'FUGG",
    ),
    "HEADER_BAD_VERSION_0": (
        lambda raw: raw.file(version=0),
        "GGUF version 0, this reader knows 2 and 3.* .at byte 4",
    ),
    "HEADER_BAD_VERSION_1": (
        lambda raw: raw.file(version=1),
        "GGUF version 1.* convert the model again .at byte 4",
    ),
    "HEADER_BAD_VERSION_FUTURE": (
        lambda raw: raw.file(version=4),
        "GGUF version 4, this reader knows 2 and 3.* .at byte 4",
    ),
    "HEADER_BAD_N_TENSORS": (
        lambda raw: raw.file(count=2**64 - 1),
        "claims 18446744073709551615 tensors, the most is 32768 .at byte 8",
    ),
    "HEADER_N_TENSORS_BEYOND_FILE": (
        lambda raw: raw.file(count=9),
        "a table of 9 tensors needs 288 bytes, 8 are left.* .at byte 24",
    ),
    "HEADER_BAD_N_KV": (
        lambda raw: raw.file(keys=2**64 - 1),
        "claims 18446744073709551615 keys, the most is 16384 .at byte 16",
    ),
    "HEADER_N_KV_BEYOND_FILE": (
        lambda raw: raw.file(keys=2),
        "a header with 2 keys needs 28 bytes, 8 are left.* .at byte 24",
    ),
    "KV_BAD_KEY_SIZE": (
        lambda raw: key(raw, raw.string("k", 2**64 - 1)),
        "key 0 has 18446744073709551615 bytes, the most is 65535 .at byte 24",
    ),
    "KV_KEY_BEYOND_FILE": (
        lambda raw: key(raw, raw.string("k", 60000)),
        "key 0 needs 60000 bytes, [0-9]+ are left.* .at byte 32",
    ),
    "KV_EMPTY_KEY": (lambda raw: key(raw, raw.pair("", "uint32", 1)), "key 0 is empty .at byte 24"),
    "KV_KEY_NOT_UTF8": (
        lambda raw: key(raw, raw.pair(b"k\xff", "uint8", 1)),
        "key 0 is not UTF-8: b'k.xff': invalid start byte at its byte 1 of 2",
    ),
    "KV_KEY_WITH_ZERO": (
        lambda raw: key(raw, raw.pair("k\0", "uint32", 1)),
        "key 0 has a zero byte at 1 of 2",
    ),
    "KV_BAD_TYPE": (
        lambda raw: key(raw, raw.string("k") + raw.pack("IQ", 13, 0)),
        "'k' has type 13, types run from 0 to 12 .at byte 33",
    ),
    "KV_BAD_ARRAY_TYPE": (
        lambda raw: key(raw, raw.string("k") + raw.pack("IIQ", 9, 13, 0)),
        "'k' has type 13, types run from 0 to 12 .at byte 37",
    ),
    "KV_DUPLICATE_KEY": (
        lambda raw: raw.file([raw.pair("k", "int8", 1)] * 2),
        "key 1 is 'k' again, first found with its value at byte 37 .at byte 38",
    ),
    "KV_BAD_ALIGN": (
        lambda raw: aligned(raw, "uint32", 13),
        "alignment' is 13, it must be a power of two and at most 1048576",
    ),
    "KV_ALIGN_0": (
        lambda raw: aligned(raw, "uint32", 0),
        "alignment' is 0, it must be a power of two",
    ),
    "KV_ALIGN_TOO_BIG": (
        lambda raw: aligned(raw, "uint32", 2**21),
        "alignment' is 2097152, it must be .* at most 1048576",
    ),
    "KV_WRONG_TYPE_ALIGN": (
        lambda raw: aligned(raw, "int32", 32),
        "alignment' is int32, it must be uint32",
    ),
    "KV_ARRAY_ALIGN": (
        lambda raw: raw.file([raw.array("general.alignment", "uint32", [32])]),
        "alignment' is array.uint32. x 1, it must be uint32",
    ),
    "TENSORS_BAD_NAME_SIZE": (
        lambda raw: tensor(raw, "n" * 64, [8]),
        "the name of tensor 0 has 64 bytes, the most is 63 .at byte 24",
    ),
    "TENSORS_NAME_NOT_UTF8": (
        lambda raw: tensor(raw, b"\xc3", [8]),
        "the name of tensor 0 is not UTF-8",
    ),
    "TENSORS_NAME_WITH_ZERO": (
        lambda raw: tensor(raw, "t\0u", [8]),
        "the name of tensor 0 has a zero byte at 1 of 3",
    ),
    "TENSORS_BAD_N_DIMS": (
        lambda raw: tensor(raw, "t", [1] * 5),
        "'t' has 5 dimensions, a tensor has 1 to 4 .at byte 33",
    ),
    "TENSORS_NO_DIMS": (
        lambda raw: tensor(raw, "t", []),
        "'t' has 0 dimensions, a tensor has 1 to 4",
    ),
    "TENSORS_HUGE_N_DIMS": (
        lambda raw: tensor(raw, "t", [1], rank=2**32 - 1),
        "'t' has 4294967295 dimensions",
    ),
    "TENSORS_BAD_SHAPE": (
        lambda raw: tensor(raw, "t", [2**64 - 1] * 2),
        "'t', F32 .18446744073709551615, .* has more than 9223372036854775807 elements or bytes",
    ),
    "TENSORS_NE_TOO_BIG": (
        lambda raw: tensor(raw, "t", [4 * (2**31 - 1)] * 2),
        "'t', F32 .8589934588, 8589934588., has more than 9223372036854775807",
    ),
    "TENSORS_NE_BEHIND_ZERO": (
        lambda raw: tensor(raw, "t", [2**62, 2**62, 0]),
        "'t', F32 .0, 4611686018427387904, 4611686018427387904., has more than",
    ),
    "TENSORS_NBYTES_TOO_BIG": (
        lambda raw: tensor(raw, "t", [2**30, 2**30], I64),
        "'t', I64 .1073741824, 1073741824., has more than",
    ),
    "TENSORS_PART_OF_A_BLOCK": (
        lambda raw: tensor(raw, "t", [33], Q4_0),
        "'t', .33.: a Q4_0 row is whole blocks of 32 elements, got 33",
    ),
    "TENSORS_BAD_TYPE": (
        lambda raw: tensor(raw, "t", [8], 1000),
        "'t', .8.: no ggml type has id 1000",
    ),
    "TENSORS_REMOVED_TYPE": (
        lambda raw: tensor(raw, "t", [32], 4),
        "'t', .32.: ggml type 4 was Q4_2, .* convert the model again",
    ),
    "TENSORS_BAD_OFFSET": (
        lambda raw: tensor(raw, "t", [8], F32, 2**64 - 1),
        "'t' has its data at offset 18446744073709551615, not a multiple of .* 32",
    ),
    "TENSORS_DUPLICATE_NAME": (
        lambda raw: raw.file([], [raw.tensor("t", [8])] * 2, BLOCK),
        "tensor 1 is named 't', as the one at byte 24",
    ),
    "TENSORS_INCONSISTENT_ALIGN": (
        lambda raw: raw.file([], [raw.tensor("t", [1]), raw.tensor("u", [1], F32, 4)], BLOCK),
        "'u' has its data at offset 4, not a multiple of the alignment 32",
    ),
    "TENSORS_OVERLAP": (
        lambda raw: raw.file(
            [], [raw.tensor("t", [16], F32, 32), raw.tensor("u", [16], F32, 0)], BLOCK * 3
        ),
        "'t' has its data at 32 to 96, 'u' at 0 to 64: they overlap .at byte 24",
    ),
    "DATA_NOT_ENOUGH_DATA": (
        lambda raw: tensor(raw, "t", [8])[:-1],
        "'t', F32 .8., has 32 bytes that end at byte 96, the file has 95",
    ),
    "DATA_PADDING_BEYOND_FILE": (
        lambda raw: raw.file([], [raw.tensor("t", [0])], alignment=1),
        "'t', F32 .0., has 0 bytes that end at byte 64, the file has 57",
    ),
    "DATA_PADDING_WRAPS": (
        lambda raw: raw.file(
            [], [raw.tensor("t", [2**63 - 1], I8), raw.tensor("u", [1], I8, 2**63)], BLOCK
        ),
        (
            "'t', I8 .9223372036854775807., has 9223372036854775807 bytes that end at byte"
            " 9223372036854775903, the file has 128"
        ),
    ),
    "DATA_MEM_SIZE_OVERFLOW": (
        lambda raw: raw.file(
            [],
            [raw.tensor(name, [2**63 - 64], I8, at) for name, at in (("t", 0), ("u", 2**63 - 64))],
            BLOCK,
        ),
        (
            "'t', I8 .9223372036854775744., has 9223372036854775744 bytes that end at byte"
            " 9223372036854775840, the file has 128"
        ),
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(raw, open_bytes, build, message):
    with pytest.raises(GGUFError, match=f"file.gguf.*{message}"):
        open_bytes(build(raw))


def test_header_empty(raw, open_bytes):
    file = open_bytes(raw.file())
    assert (
        file.version,
        file.alignment,
        file.architecture,
        dict(file.metadata),
        dict(file.tensors),
    ) == (3, 32, None, {}, {})


def test_version_2(raw, open_bytes):
    file = open_bytes(raw.file([raw.pair("k", "string", "v")], version=2))
    assert (file.version, file.metadata["k"]) == (2, "v")


def test_longest_key_and_name(raw, open_bytes):
    file = open_bytes(
        raw.file([raw.pair("k" * 65535, "bool", True)], [raw.tensor("n" * 63, [8])], BLOCK)
    )
    assert (list(file.metadata), list(file.tensors)) == (["k" * 65535], ["n" * 63])


@pytest.mark.parametrize(
    "kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
)
def test_kv_integers(raw, open_bytes, kind):
    limits = np.iinfo(kind).min, np.iinfo(kind).max
    metadata = open_bytes(
        raw.file([raw.array("a", kind, limits), *(raw.pair(str(n), kind, n) for n in limits)])
    ).metadata
    assert [metadata[str(n)] for n in limits] == list(limits)
    assert (metadata["a"].tolist(), metadata["a"].dtype) == (list(limits), kind)
    assert [metadata.describe(key) for key in metadata] == [f"array[{kind}] x 2", kind, kind]


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_kv_floats(raw, open_bytes, kind):
    values = [-0.0, 1.5, float("inf"), float("nan"), float(np.finfo(kind).smallest_subnormal)]
    metadata = open_bytes(
        raw.file(
            [
                raw.array("a", kind, values),
                *(raw.pair(str(n), kind, x) for n, x in enumerate(values)),
            ]
        )
    ).metadata
    np.testing.assert_array_equal(metadata["a"], np.array(values, kind), strict=True)
    np.testing.assert_array_equal([metadata[str(n)] for n in range(len(values))], values)


@pytest.mark.parametrize("count", [0, 1, 16])
def test_kv_arrays_of_any_length(raw, open_bytes, count):
    strings = ["x" * n for n in range(count)]
    metadata = open_bytes(
        raw.file([raw.array("s", "string", strings), raw.array("n", "uint16", range(count))])
    ).metadata
    assert metadata["s"] == tuple(strings)
    np.testing.assert_array_equal(metadata["n"], np.arange(count, dtype="uint16"), strict=True)


def test_tensors_zero_dim(raw, open_bytes):
    tensors = open_bytes(
        raw.file([], [raw.tensor("t", [32, 0], Q4_0), raw.tensor("u", [8])], BLOCK)
    ).tensors
    assert (tensors["t"].shape, tensors["t"].nbytes, tensors["t"].data.shape) == (
        (0, 32),
        0,
        (0, 18),
    )
    assert tensors["u"].data.tobytes() == BLOCK


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096, 2**20])
def test_data_custom_align(raw, open_bytes, alignment):
    tensors = [raw.tensor("t", [3], I8, 0), raw.tensor("u", [2, 2], I8, max(alignment, 4))]
    data = b"abc" + bytes(max(alignment, 4) - 3) + b"wxyz"
    file = open_bytes(
        raw.file(
            [raw.pair("general.alignment", "uint32", alignment)], tensors, data, alignment=alignment
        )
    )
    assert file.alignment == alignment
    assert all(info.offset % alignment == 0 for info in file.tensors.values())
    assert [info.data.tobytes() for info in file.tensors.values()] == [b"abc", b"wxyz"]


def test_data_in_another_order_and_with_gaps(raw, open_bytes):
    file = open_bytes(
        raw.file(
            [],
            [raw.tensor("t", [32], I8, 96), raw.tensor("u", [32], I8, 0)],
            BLOCK + b"?" * 64 + BLOCK[::-1],
        )
    )
    assert (file.tensors["t"].data.tobytes(), file.tensors["u"].data.tobytes()) == (
        BLOCK[::-1],
        BLOCK,
    )
