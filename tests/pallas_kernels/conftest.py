"""What kernels run on here, and packed matrices whose values ggml gave."""

import functools

import jax
import pytest

from pallas_kernels.qmatmul import Weight
from pallas_kernels.targets import INTERPRET, Target, current
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.described import as_if_on
from tests.reference_blocks import ggml_blocks, packed

__all__ = ["ggml_blocks", "matrix", "packed"]

PACKED_TYPES = [
    name for name, fmt in formats.FORMATS.items() if fmt.is_quantized and word_packed.can_hold(fmt)
]
#: Kernels run on the GPU that jax computes on, in Pallas's interpreter where there is none.
TARGET = current() or INTERPRET
#: A GPU of each set of instructions that kernels are written for.
GPUS = [Target("cuda", "9.0"), Target("rocm", "gfx942"), Target("rocm", "gfx1100")]


def lowered_to_triton(target, function, *args, **kwargs) -> str:
    """Lower a function of abstract arrays for a GPU that is not there; args may be nested."""
    kind = "NVIDIA H200" if target.platform == "cuda" else target.architecture
    with as_if_on(target.platform, kind):
        return (
            jax.jit(function)
            .trace(*args, **kwargs)
            .lower(lowering_platforms=(target.platform,))
            .as_text()
        )


@pytest.fixture(scope="session")
def matrix(packed):
    """(type, rows, blocks a row) -> (Weight, float32 [rows, inputs] that ggml's C code gives for
    it).
    """

    @functools.cache
    def make(name, rows, blocks):
        row_bytes, values = packed(name, rows, blocks)
        fmt = formats.get(name)
        split = jax.jit(
            lambda data: word_packed.split(
                fmt.split(data.reshape(rows, blocks, fmt.block_bytes)), fmt
            )
        )
        return Weight(split(row_bytes), word_packed.packing(fmt)), values

    return make
