"""Codes in words and scales in bytes, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.packing import (
    GROUP,
    POSITIONS,
    Packing,
    field_of_position,
    half_float,
    pack_codes,
    parts,
    position_words,
    power_of_two,
    times_power_of_two,
    unpack_codes,
)
from pallas_kernels.samples import random_planes
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import PACKED_TYPES

pytestmark = pytest.mark.core

BITS = [1, 2, 3, 4, 5, 6, 8]
ALL_CODES = np.arange(256, dtype=np.uint8)


@pytest.fixture
def codes():
    """bits -> uint8 [2, 3, 5, 32]: two matrices of three rows of five groups."""
    return lambda bits: np.random.default_rng(bits).integers(
        0, 2**bits, (2, 3, 5, GROUP), dtype=np.uint8
    )


@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_take_their_bits_and_come_back(bits, codes):
    words = pack_codes(codes(bits), bits)
    assert (words.dtype, words.shape) == (jnp.uint32, (2, 3, bits, 5))
    np.testing.assert_array_equal(unpack_codes(words, bits), codes(bits))


@pytest.mark.parametrize("bits", BITS)
def test_any_words_come_back(bits):
    """Packing uses every bit."""
    words = np.random.default_rng(bits).integers(0, 2**32, (3, bits, 5), dtype=np.uint32)
    np.testing.assert_array_equal(pack_codes(unpack_codes(words, bits), bits), words)


@pytest.mark.parametrize("bits", BITS)
def test_a_position_is_four_consecutive_inputs_in_the_bytes_of_a_word(bits, codes):
    words = pack_codes(codes(bits), bits)
    positions = position_words([words[..., i, :] for i in range(bits)], bits)
    as_bytes = np.stack(
        [np.asarray(word).view(np.uint8).reshape(2, 3, 5, 4) for word in positions], axis=-2
    )
    np.testing.assert_array_equal(as_bytes.reshape(2, 3, 5, GROUP), codes(bits))


@pytest.mark.parametrize("bits", BITS)
def test_a_field_lies_where_it_is_said_to(bits, codes):
    """By each input: the byte of its position's word, the bits of each part of its code."""
    words = np.asarray(pack_codes(codes(bits), bits))
    assert sum(width for _, width, _ in parts(bits)) == bits
    found = np.zeros_like(codes(bits))
    for (first, width, low), position, byte in itertools.product(
        parts(bits), range(POSITIONS), range(4)
    ):
        word, shift = field_of_position(position, width)
        field = words[..., first + word, :] >> (8 * byte + shift) & (2**width - 1)
        found[..., 4 * position + byte] |= (field << low).astype(np.uint8)
    np.testing.assert_array_equal(found, codes(bits))


@pytest.mark.parametrize(
    ("width", "fields"),
    [
        (8, [(i, 0) for i in range(8)]),
        (4, [(i, 0) for i in range(4)] + [(i, 4) for i in range(4)]),
        (2, [(i, 4 * nibble + 2 * j) for nibble in range(2) for i in range(2) for j in range(2)]),
        (1, [(0, j) for j in range(8)]),
    ],
)
def test_fields_are_in_the_order_that_the_module_states(width, fields):
    assert [field_of_position(position, width) for position in range(POSITIONS)] == fields
    word, shift = field_of_position(np.arange(POSITIONS), width)
    np.testing.assert_array_equal(np.stack(np.broadcast_arrays(word, shift), axis=1), fields)


def test_six_bits_are_four_words_of_the_lower_four_then_two():
    assert parts(6) == [(0, 4, 0), (4, 2, 4)]
    assert parts(5) == [(0, 4, 0), (4, 1, 4)]
    assert parts(8) == [(0, 8, 0)]


def bits_of(values):
    return np.asarray(values, np.float32).view(np.uint32)


def test_half_floats():
    """4 bits of exponent, biased by 7, and 3 of fraction: ml_dtypes' float8_e4m3fn up to 448, half
    of it. ggml reads 0xFF as 480.
    """
    import ml_dtypes

    expected = (ALL_CODES & 127).view(ml_dtypes.float8_e4m3fn).astype(np.float64) / 2
    expected[127], expected[255] = 0, 240
    np.testing.assert_array_equal(bits_of(jax.jit(half_float)(ALL_CODES)), bits_of(expected))


def test_powers_of_two():
    expected = np.ldexp(1.0, ALL_CODES.astype(np.int64) - 128)
    expected[:2] = 0  # subnormal
    np.testing.assert_array_equal(bits_of(jax.jit(power_of_two)(ALL_CODES)), bits_of(expected))


@pytest.mark.parametrize("magnitude", [0, 1, 2, 3, 12, 127, 2**23 + 1, 2**24 - 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_products_with_powers_of_two(magnitude, sign):
    """Subnormal ones too, exactly; what is too large is infinite."""
    x = np.full(256, sign * magnitude, np.float32)
    with np.errstate(over="ignore"):
        expected = np.ldexp(x.astype(np.float64), ALL_CODES.astype(np.int64) - 128).astype(
            np.float32
        )
    assert (expected != 0).all() == (magnitude != 0)
    np.testing.assert_array_equal(
        bits_of(jax.jit(times_power_of_two)(x, ALL_CODES)), bits_of(expected)
    )


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_planes_are_those_that_a_packing_states(name):
    """And random planes have their shapes and dtypes."""
    fmt = formats.get(name)
    packing = word_packed.packing(fmt)
    fields = jax.eval_shape(fmt.split, jax.ShapeDtypeStruct((7, 3, fmt.block_bytes), jnp.uint8))
    planes = jax.eval_shape(lambda fields: word_packed.split(fields, fmt), fields)
    assert {plane: array.dtype.name for plane, array in planes.items()} == packing.planes()
    made = jax.eval_shape(
        lambda: random_planes(jax.random.key(0), packing, 7, 3 * fmt.block // GROUP)
    )
    assert {plane: (array.dtype, array.shape) for plane, array in planes.items()} == {
        plane: (array.dtype, array.shape) for plane, array in made.items()
    }


def test_packings_are_keys():
    """Static arguments of jit, equal where they say the same."""
    assert hash(Packing(4, table=(1, 2))) == hash(Packing(4, table=(1, 2)))
    assert Packing(4, offset=8) != Packing(4)
