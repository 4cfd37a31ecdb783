"""Packed matrices of any size with values that are known to the bit: fixtures that the suites of
both packages import.
"""

import functools

import ml_dtypes  # noqa: F401  registers the dtype "bfloat16" with NumPy
import numpy as np
import pytest

from rocmforge_jax import formats

#: ggml's types for activations: no reference file holds them.
ACTIVATIONS = {
    "Q8_1": [("d", "f2"), ("s", "f2"), ("qs", "i1", 32)],
    "Q8_K": [("d", "f4"), ("qs", "i1", 256), ("bsums", "i2", 16)],
}


def _activation_blocks(name):
    generator = np.random.default_rng(0)
    blocks = np.zeros(16, ACTIVATIONS[name])
    blocks["d"] = generator.uniform(0.001, 0.1, 16)
    blocks["qs"] = generator.integers(-127, 128, blocks["qs"].shape)
    values = blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
    return blocks.view(np.uint8).reshape(16, -1), values


def _mxfp6_blocks(name):
    """Values by formats.dequantize, which tests/formats holds against ml_dtypes."""
    rows = formats.quantize(
        np.random.default_rng(0).standard_normal((1, 2048)).astype(np.float32), name
    )
    return rows.reshape(-1, formats.get(name).block_bytes), np.asarray(
        formats.dequantize(rows, name)
    ).reshape(-1, 32)


@pytest.fixture(scope="session")
def ggml_blocks(reference):
    """type -> (uint8 [blocks, block bytes], the float32 [blocks, block] that ggml's C code gives
    for them).
    """
    files = {path.stem.upper(): path for path in (reference / "dequant").glob("*.npz")}

    @functools.cache
    def load(name):
        if name in ACTIVATIONS:
            return _activation_blocks(name)
        if name not in files:
            return _mxfp6_blocks(name)
        with np.load(files[name]) as arrays:
            kind = "quantized" if "quantized_bytes" in arrays else "random"
            fmt = formats.get(name)
            return arrays[f"{kind}_bytes"].reshape(-1, fmt.block_bytes), arrays[
                f"{kind}_values"
            ].reshape(-1, fmt.block)

    return load


@pytest.fixture(scope="session")
def packed(ggml_blocks):
    """(type, rows, blocks a row) -> (uint8 [rows, row bytes], float32 [rows, elements]): reference
    blocks in random places.
    """

    @functools.cache
    def make(name, rows, blocks):
        block_bytes, values = ggml_blocks(name)
        chosen = np.random.default_rng(rows * 1000 + blocks).integers(
            0, len(values), (rows, blocks)
        )
        return block_bytes[chosen].reshape(rows, -1), values[chosen].reshape(rows, -1)

    return make
