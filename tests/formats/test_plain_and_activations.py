"""The types without reference blocks: plain numbers against NumPy's casts, and ggml's two types of
activations.
"""

import ml_dtypes
import numpy as np
import pytest

from rocmforge_jax.formats import dequantize

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    "dtype",
    ["int8", "int16", "int32", "int64", "float16", "float32", "float64", ml_dtypes.bfloat16],
)
def test_plain_types_read_as_numpy_casts_them(dtype, same_bits):
    dtype = np.dtype(dtype)
    name = {"bfloat16": "BF16"}.get(dtype.name, f"{dtype.name[0].upper()}{8 * dtype.itemsize}")
    numbers = np.random.default_rng(5).integers(0, 256, 8 * 20_000, dtype=np.uint8).view(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        same_bits(dequantize(numbers.view(np.uint8), name), numbers.astype(np.float32))


def test_f64_rounds_once_at_every_scale(same_bits):
    """Around each float32 exponent, subnormal and infinite too: a float32 number, its middles, and
    their neighbours.
    """
    exact = np.ldexp(1 + np.arange(8) / 2**23, np.arange(-151, 129)[:, None])
    half = np.ldexp(0.5 / 2**23, np.arange(-151, 129)[:, None])
    numbers = np.concatenate(
        [
            exact,
            exact + half,
            np.nextafter(exact + half, 0),
            np.nextafter(exact + half, np.inf),
            exact / 2,
        ],
        axis=None,
    )
    special = np.array(
        [
            0.0,
            np.inf,
            np.nan,
            2.0**-149,
            2.0**-150,
            np.nextafter(2.0**-150, 1),
            5e-324,
            2.0**-126 - 2.0**-150,
            1.7e308,
        ]
    )
    numbers = np.concatenate([numbers, special])
    numbers = np.concatenate([numbers, -numbers])
    with np.errstate(over="ignore", under="ignore"):
        same_bits(dequantize(numbers.view(np.uint8), "F64"), numbers.astype(np.float32))


def test_i64_rounds_once_at_every_length(same_bits):
    """Powers of two and their float32 middles, with neighbours, and the ends of the range."""
    powers = 2 ** np.arange(63, dtype=np.int64)
    middles = [powers + (powers >> 24) * odd for odd in (1, 3)]
    numbers = np.concatenate([a + step for a in (powers, *middles) for step in (-1, 0, 1)])
    numbers = np.concatenate([numbers, -numbers, [0, 2**63 - 1, -(2**63)]])
    same_bits(dequantize(numbers.view(np.uint8), "I64"), numbers.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "struct"),
    {
        "Q8_1": [("d", "f2"), ("s", "f2"), ("qs", "i1", 32)],
        "Q8_K": [("d", "f4"), ("qs", "i1", 256), ("bsums", "i2", 16)],
    }.items(),
)
def test_types_of_activations_are_scale_times_code(name, struct, same_bits):
    generator = np.random.default_rng(8)
    blocks = np.zeros(9, struct)
    blocks["d"] = generator.normal(size=9)
    blocks["qs"] = generator.integers(-128, 128, blocks["qs"].shape)
    expected = blocks["d"].astype(np.float32)[:, None] * blocks["qs"].astype(np.float32)
    same_bits(dequantize(blocks.view(np.uint8), name), expected.reshape(-1), name)
