"""Bits, oracles and the reference blocks, for all tests of formats."""

import functools
import json
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from rocmforge_jax import formats

#: The types that ggml made reference values for.
REFERENCE = tuple(
    "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S"
    " IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0".split()
)


@pytest.fixture(params=REFERENCE)
def ggml(request, reference):
    """One type's reference: name, stated (id and sizes), and the arrays of its npz by name."""
    folder, files = (
        reference / "dequant",
        {path.stem.upper(): path for path in (reference / "dequant").glob("*.npz")},
    )
    stated = {
        name.upper(): entry
        for name, entry in json.loads((folder / "index.json").read_text()).items()
    }
    with np.load(files[request.param]) as arrays:
        return SimpleNamespace(
            name=request.param, stated=stated[request.param], arrays=dict(arrays)
        )


@pytest.fixture(scope="session")
def same_bits():
    """A check that two float arrays are equal to the bit, where any NaN equals any other."""

    def check(actual, expected, message=""):
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        unsigned = f"u{actual.dtype.itemsize}"

        def canonical(a):
            return np.where(np.isnan(a.astype(np.float32)), a.dtype.type(np.nan), a).view(unsigned)

        np.testing.assert_array_equal(canonical(actual), canonical(expected), err_msg=message)

    return check


@pytest.fixture(scope="session")
def oracle():
    """gguf's own NumPy decoder: (bytes, type name) -> float32."""

    def dequantize(blocks, name):
        with np.errstate(all="ignore"):
            return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])

    return dequantize


@pytest.fixture(scope="session")
def random_bytes():
    """(format name, rows, blocks a row) -> uint8 [rows, row bytes]: every bit random, so scales are
    infinite or NaN now and then.
    """

    @functools.cache
    def make(name, rows, blocks):
        generator = np.random.default_rng(sum(name.encode()))
        return generator.integers(
            0, 256, (rows, blocks * formats.get(name).block_bytes), dtype=np.uint8
        )

    return make
