"""The MX types and NVFP4: every scale, every code, every position."""

import ml_dtypes
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.formats import dequantize, quantize
from rocmforge_jax.formats.mx import pack6, unpack6

pytestmark = pytest.mark.core

CODES = np.arange(64, dtype=np.uint8)
MXFP6 = {"MXFP6_E2M3": ml_dtypes.float6_e2m3fn, "MXFP6_E3M2": ml_dtypes.float6_e3m2fn}
NIBBLE_PAIRS = np.arange(16, dtype=np.uint8) * 17  # element i and element 16 + i are code i


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_mxfp4_every_code_under_every_scale(dtype, oracle, same_bits):
    blocks = np.array([[e, *NIBBLE_PAIRS] for e in range(256)], np.uint8)
    with np.errstate(over="ignore"):
        expected = oracle(blocks, "MXFP4").astype(dtype)
    same_bits(dequantize(blocks, "MXFP4", dtype=dtype), expected)


def test_mxfp4_scales_at_the_ends(same_bits):
    """2^(e - 127) times 0.5, 1 and 6: subnormal for e = 0.

    Beyond float32 for the largest two, 255 included.
    """
    blocks = np.array([[e, 0x01, 0x02, 0x07, *[0] * 13] for e in (0, 1, 2, 254, 255)], np.uint8)
    values = np.asarray(dequantize(blocks, "MXFP4"))[:, :3]
    expected = [
        [2.0**-128, 2.0**-127, 1.5 * 2.0**-125],
        [2.0**-127, 2.0**-126, 1.5 * 2.0**-124],
        [2.0**-126, 2.0**-125, 1.5 * 2.0**-123],
    ]
    expected += [[2.0**126, 2.0**127, np.inf], [2.0**127, np.inf, np.inf]]
    same_bits(values, np.array(expected, np.float32))


def test_nvfp4_every_code_under_every_scale(oracle, same_bits):
    scales = np.arange(256, dtype=np.uint8).reshape(64, 4)
    codes = np.tile((np.arange(8) | (np.arange(8, 16) << 4)).astype(np.uint8), (64, 4))
    blocks = np.concatenate([scales, codes], axis=1)
    same_bits(dequantize(blocks, "NVFP4"), oracle(blocks, "NVFP4"))


def test_six_bit_codes_pack_and_unpack_for_every_code_at_every_position():
    for code in CODES:
        for position in range(32):
            codes = (CODES[:32] * 7 + code) % 64
            codes[position] = code
            packed = pack6(codes)
            assert packed.shape == (24,)
            np.testing.assert_array_equal(unpack6_numpy(packed), codes)


def test_unpacking_on_the_device_is_unpacking_of_a_192_bit_number():
    packed = np.random.default_rng(6).integers(0, 256, (100, 24), dtype=np.uint8)
    codes = np.array([np.asarray(unpack6(row)) for row in packed])
    np.testing.assert_array_equal(codes, [unpack6_numpy(row) for row in packed])
    np.testing.assert_array_equal(pack6(codes), packed)


def unpack6_numpy(packed):
    """Bits 6i to 6i + 5 of the little-endian number, by Python's integers."""
    number = int.from_bytes(packed.tobytes(), "little")
    return np.array([number >> (6 * i) & 63 for i in range(32)], np.uint8)


def mxfp6_blocks(codes, exponents):
    """uint8 [n, 32], uint8 [n] -> uint8 [n, 25]."""
    return np.concatenate([pack6(codes), exponents[:, None]], axis=1)


@pytest.mark.parametrize("name", MXFP6)
def test_mxfp6_every_code_at_every_position_is_the_value_of_ml_dtypes(name, same_bits):
    codes = (CODES[:, None] + CODES[None, :32]) % 64
    values = dequantize(mxfp6_blocks(codes, np.full(64, 127, np.uint8)), name)
    same_bits(values, codes.view(MXFP6[name]).astype(np.float32))


@pytest.mark.parametrize("name", MXFP6)
def test_mxfp6_every_code_under_every_scale_is_the_product_of_ml_dtypes(name, same_bits):
    exponents = np.repeat(np.arange(256, dtype=np.uint8), 2)
    codes = np.tile(CODES.reshape(2, 32), (256, 1))
    elements, scales = (
        codes.view(MXFP6[name]).astype(np.float64),
        exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float64),
    )
    with np.errstate(over="ignore"):
        expected = (elements * scales[:, None]).astype(np.float32)
    same_bits(dequantize(mxfp6_blocks(codes, exponents), name), expected)


@pytest.mark.parametrize("name", MXFP6)
def test_mxfp6_quantizing_its_own_values_gives_its_own_bytes(name):
    """The first element of each block has the highest binade, which fixes the shared exponent."""
    codes = (CODES[:, None] + CODES[None, :32]) % 64
    codes[:, 0] = 31
    blocks = mxfp6_blocks(codes, np.arange(100, 164, dtype=np.uint8))
    np.testing.assert_array_equal(quantize(np.asarray(dequantize(blocks, name)), name), blocks)


@pytest.mark.parametrize("name", MXFP6)
def test_mxfp6_rounds_to_the_nearest_code_and_saturates(name):
    """The last two blocks: just below a power of two, where the shared exponent must not round up,
    and the power itself.
    """
    x = np.random.default_rng(1).normal(size=(200, 32)).astype(np.float32)
    x[-2:, 7] = np.nextafter(np.float32(8), 0), 8
    blocks = quantize(x, name)
    top = np.abs(x).max(axis=1)
    emax = {"MXFP6_E2M3": 2, "MXFP6_E3M2": 4}[name]
    np.testing.assert_array_equal(
        blocks[:, 24].astype(int) - 127, np.floor(np.log2(top.astype(np.float64))) - emax
    )
    scale = np.ldexp(1.0, blocks[:, 24].astype(int) - 127)[:, None]
    expected = (x / scale).astype(MXFP6[name]).astype(np.float64) * scale
    largest = float(ml_dtypes.finfo(MXFP6[name]).max) * scale
    expected = np.clip(
        np.where(np.isfinite(expected), expected, np.copysign(largest, x)), -largest, largest
    )
    np.testing.assert_array_equal(np.asarray(dequantize(blocks, name)), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "emax", "smallest"), [("MXFP6_E2M3", 2, 0.125), ("MXFP6_E3M2", 4, 0.0625)]
)
def test_mxfp6_ties_go_to_the_even_code(name, emax, smallest):
    ties = np.zeros((1, 32), np.float32)
    ties[0, :6] = np.array([2.0**emax / smallest, 0.5, 1.5, 2.5, -0.5, -1.5]) * smallest
    assert (np.asarray(dequantize(quantize(ties, name), name))[0, 1:6] / smallest).tolist() == [
        0,
        2,
        2,
        -0.0,
        -2,
    ]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            np.zeros(31, np.uint8),
            r"6-bit codes are uint8 \[\.\.\., a multiple of 4\], got uint8 \[31\]",
        ),
        (
            np.zeros(32, np.int8),
            r"6-bit codes are uint8 \[\.\.\., a multiple of 4\], got int8 \[32\]",
        ),
        (np.full(32, 64, np.uint8), "6-bit codes are at most 63, got 64"),
    ],
)
def test_pack6_refuses_what_is_no_six_bit_code(codes, message):
    with pytest.raises(ValueError, match=message):
        pack6(codes)


def test_the_product_form_of_mxfp4_has_the_doubled_codes_and_half_the_scale():
    f = formats.get("MXFP4")
    affine = f.affine(e=np.uint8(130), qs=NIBBLE_PAIRS)
    assert np.asarray(affine.codes)[:16].tolist() == [
        0,
        1,
        2,
        3,
        4,
        6,
        8,
        12,
        0,
        -1,
        -2,
        -3,
        -4,
        -6,
        -8,
        -12,
    ]
    assert float(affine.scale) == 2.0 ** (130 - 128)
