"""dequantize against ggml's values, in every dtype, shape and place.

Partial blocks; what it refuses.
"""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.formats import dequantize

#: gguf has a NumPy decoder of these.
IN_GGUF = [name for name in formats.FORMATS if isinstance(getattr(gguf.quants, name, None), type)]


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_equal_ggml_to_the_bit(ggml, dtype, same_bits):
    for kind in ("quantized", "random"):
        if ggml.stated["quantized"] or kind == "random":
            expected = ggml.arrays[f"{kind}_values"]
            with np.errstate(over="ignore"):
                expected = expected.astype(dtype)
            same_bits(
                dequantize(ggml.arrays[f"{kind}_bytes"], ggml.name, dtype=dtype), expected, kind
            )


@pytest.mark.parametrize("name", IN_GGUF)
def test_every_bit_pattern_reads_as_gguf_reads_it(name, random_bytes, oracle, same_bits):
    rows = random_bytes(name, 4, 1024 // formats.get(name).block)
    same_bits(dequantize(rows, name), oracle(rows, name))


@pytest.fixture
def check_counts(random_bytes, same_bits):
    """check_counts(block, counts): dequantises the counts of values of all types of a block size.

    They share the program that XLA compiles for each count, which is what takes the time.
    """

    def check(block, counts):
        rows = {
            name: random_bytes(name, 1, 2)[0]
            for name, f in formats.FORMATS.items()
            if f.block == block
        }
        whole = {name: np.asarray(dequantize(row, name)) for name, row in rows.items()}
        for n in counts:
            for name, row in rows.items():
                same_bits(dequantize(row, name, count=n), whole[name][:n], f"{name}, count={n}")

    return check


BLOCKS = sorted({f.block for f in formats.FORMATS.values()})


@pytest.mark.parametrize("block", BLOCKS)
def test_count_takes_exactly_n_values_up_to_two_blocks(block, check_counts):
    """Around the ends of groups, of blocks, and between."""
    ends = range(0, 2 * block + 1, 16)
    near = {end + more for end in ends for more in (-1, 0, 1)} | set(range(0, 2 * block, 7))
    check_counts(block, [n for n in sorted(near) if 0 <= n <= 2 * block])


@pytest.mark.heavy
@pytest.mark.parametrize("block", BLOCKS)
def test_count_takes_exactly_n_values_for_every_n_up_to_two_blocks(block, check_counts):
    check_counts(block, range(2 * block + 1))


@pytest.mark.core
@pytest.mark.parametrize("name", ["F16", "Q5_1", "Q6_K", "MXFP6_E2M3"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 0), (2, 1, 3)])
def test_leading_axes_stay_and_rows_are_cut_alike(name, lead, random_bytes, same_bits):
    f = formats.get(name)
    rows = random_bytes(name, np.prod(lead, dtype=int), 2).reshape(*lead, 2 * f.block_bytes)
    values = np.asarray(dequantize(rows, name))
    assert values.shape == (*lead, 2 * f.block)
    same_bits(values.reshape(-1), np.asarray(dequantize(rows.reshape(-1), name)))
    same_bits(dequantize(rows, name, count=f.block + 1), values[..., : f.block + 1])


@pytest.mark.core
def test_numpy_and_jax_input_inside_and_outside_jit_agree(random_bytes, same_bits):
    blocks = random_bytes("Q4_K", 1, 4)[0]
    expected = dequantize(blocks, "q4_k", count=300)
    assert isinstance(expected, jax.Array)
    same_bits(dequantize(jnp.asarray(blocks), 12, count=300), expected)
    same_bits(jax.jit(lambda b: dequantize(b, formats.get("Q4_K"), count=300))(blocks), expected)


@pytest.mark.core
@pytest.mark.parametrize("held", ["Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("read_as", ["Q4_1", "Q5_0", "Q5_1"])
def test_bytes_of_another_type_are_noticed_where_sizes_differ(held, read_as, reference):
    with np.load(reference / "dequant" / f"{held.lower()}.npz") as arrays:
        row = arrays["quantized_bytes"][0, : 13 * formats.get(held).block_bytes]
    if held == read_as:
        assert dequantize(row, read_as).shape == (13 * 32,)
    else:
        refusal = (
            f"a {read_as} row is whole blocks of {formats.get(read_as).block_bytes} bytes, got"
            f" {row.size} bytes"
        )
        with pytest.raises(ValueError, match=refusal):
            dequantize(row, read_as)


@pytest.mark.core
def test_too_few_bytes_say_both_numbers():
    with pytest.raises(
        ValueError, match="33 Q5_0 values take 2 blocks of 22 bytes = 44 bytes, got 1 = 22 bytes"
    ):
        dequantize(np.zeros(22, np.uint8), "Q5_0", count=33)


@pytest.mark.core
@pytest.mark.parametrize(
    ("block_bytes", "message"),
    [
        (np.zeros(21, np.uint8), "a Q5_0 row is whole blocks of 22 bytes, got 21 bytes"),
        (
            np.zeros(22, np.int8),
            r"Q5_0 bytes are an array uint8 \[\.\.\., row bytes\], got int8 \[22\]",
        ),
        (np.uint8(3), r"Q5_0 bytes are an array uint8 \[\.\.\., row bytes\], got uint8 \[\]"),
        (bytes(22), r"Q5_0 bytes are an array uint8 \[\.\.\., row bytes\], got bytes"),
    ],
)
def test_what_is_no_row_of_blocks_is_refused(block_bytes, message):
    with pytest.raises(ValueError, match=message):
        dequantize(block_bytes, "Q5_0")


@pytest.mark.core
def test_other_dtypes_and_negative_counts_are_refused():
    with pytest.raises(ValueError, match="dequantize gives float32, bfloat16, float16, not int32"):
        dequantize(np.zeros(22, np.uint8), "Q5_0", dtype=np.int32)
    with pytest.raises(ValueError, match="count must be an integer of at least 0, got -1"):
        dequantize(np.zeros(22, np.uint8), "Q5_0", count=-1)
