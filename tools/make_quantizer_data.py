"""Makes tests/data/quantized.npz: what ggml's quantisers make of rows that are hard to quantise.

    python -m tools.make_quantizer_data LIBRARY

LIBRARY is a shared library of ggml.c, ggml-quants.c and ggml-threading.cpp, compiled with -DNDEBUG
and without fused multiply-add, which is how llama.cpp compiles them for x86-64. No
importance matrix is given, as in llama-quantize.
"""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np

from rocmforge_jax import formats

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "quantized.npz"
TYPES = (
    "Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 Q1_0 Q2_0 NVFP4"
).split()
#: Two blocks of the largest formats.
ELEMENTS = 512


def rows() -> np.ndarray:
    """Returns rows of usual numbers and of those at which searches and roundings go wrong."""
    random = np.random.default_rng(11)

    def normal():
        return random.normal(size=ELEMENTS)

    one_outlier, far_outlier = np.zeros(ELEMENTS), 1e-3 * normal()
    one_outlier[77], far_outlier[300] = 3, -50
    half, groups = (
        np.arange(ELEMENTS),
        2.0 ** np.repeat(random.integers(-12, 3, ELEMENTS // 16), 16),
    )
    made = [
        normal(),
        0.02 * normal() * groups,
        np.zeros(ELEMENTS),
        one_outlier,
        far_outlier,
        np.where(half < 256, -0.731, 0.731),
        np.where(half < 256, 1e-9, 1e-14) * normal(),
        np.where(half < 256, 1e-17, 1e-36) * normal(),
        np.where(half < 256, 1, -1) * np.abs(normal()),
        normal() * np.exp(2 * normal()),
        np.round(normal() * 3) / 8,
        0.25 * random.integers(-1, 2, ELEMENTS),
        np.where(half % 32 < 16, 0, normal()),
        1000 + normal(),
        np.linspace(-1, 1, ELEMENTS),
    ]
    return np.array(made, np.float32)


def quantize(library, name: str, values: np.ndarray) -> np.ndarray:
    """Returns ggml's blocks of rows, uint8 [rows, row bytes]."""
    format = formats.get(name)
    blocks = np.zeros((len(values), format.row_bytes(values.shape[-1])), np.uint8)
    pointers = (ctypes.c_void_p(a.ctypes.data) for a in (values, blocks))
    if name == "Q8_K":
        library.quantize_row_q8_K_ref(*pointers, ctypes.c_int64(values.size))
        return blocks
    numbers = map(ctypes.c_int64, (0, *values.shape))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    written = library.ggml_quantize_chunk(format.ggml_id, *pointers, *numbers, None)
    assert written == blocks.nbytes
    return blocks


def main():
    """Writes the rows and the blocks of each type."""
    (path,) = sys.argv[1:]
    library = ctypes.CDLL(path, mode=os.RTLD_LAZY)
    source = rows()
    found = {name: quantize(library, name, source) for name in (*TYPES, "Q8_K")}
    np.savez_compressed(DATA, source=source, **found)
    print(f"{DATA}: {DATA.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
