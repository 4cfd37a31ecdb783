"""A packed weight is never written out dense: what the compiled products allocate.

Only compiled, never run, so the matrix has the size of a real one: 4096 x 4096, 64 MiB in float32.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from rocmforge_jax import formats
from rocmforge_jax.quant import QTensor, matmul
from tests.quant.conftest import IN_GROUPS, QUANTIZED

SIZE = 4096
DENSE_BYTES = 4 * SIZE * SIZE
#: Two rows are the most that small blocks are decoded in registers for; other types take two as
#: they take eight.
SAMPLES = [
    (name, count)
    for name in QUANTIZED
    for count in (1, 2, 8)
    if count != 2 or formats.get(name).block == 32
]


@pytest.fixture
def temporaries(optimised):
    """Bytes of temporaries of a product with `count` rows of x, as a share of the dense float32
    weight.
    """

    def temporaries(name, layout, count, transposed=True):
        row_bytes = (SIZE, formats.get(name).row_bytes(SIZE))
        w = jax.eval_shape(
            lambda rows: QTensor.from_bytes(rows, name, layout=layout, transposed=transposed),
            jax.ShapeDtypeStruct(row_bytes, jnp.uint8),
        )
        x = jax.ShapeDtypeStruct((count, SIZE), jnp.float32)
        compiled = jax.jit(functools.partial(matmul, backend="xla")).lower(x, w).compile(optimised)
        return compiled.memory_analysis().temp_size_in_bytes / DENSE_BYTES

    return temporaries


def some_in_core(samples, core):
    return [
        pytest.param(*sample, marks=pytest.mark.core if sample[0] in core else ())
        for sample in samples
    ]


@pytest.mark.parametrize(("name", "count"), some_in_core(SAMPLES, core=("Q4_0", "Q5_1", "Q4_K")))
def test_columns_hold_a_tile_and_the_scales_at_most(name, count, temporaries):
    """The layout of CPUs.

    The most is 0.19, of Q2_K: a tile of 1/16 and, in float32, two scales for each 16 weights.
    """
    assert temporaries(name, "columns", count) < 0.25


@pytest.mark.parametrize("name", ["Q5_1", "Q4_K"])
def test_columns_the_other_way_round(name, temporaries):
    """The gradient, and a product with an embedding as it lies."""
    assert temporaries(name, "columns", 8, transposed=False) < 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_on_a_gpu(name, count, temporaries):
    """MXFP6, which no GGUF file holds, has each code written out as a byte: exactly a quarter."""
    assert temporaries(name, "rows", count) < (0.26 if name.startswith("MXFP6") else 0.15)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("name", IN_GROUPS)
def test_groups_on_a_gpu_without_kernels(name, count, temporaries):
    """What stands in for a kernel that fails.

    MXFP4 has its codes written out, a byte each: exactly a quarter.
    """
    assert temporaries(name, "groups", count) < (0.26 if name == "MXFP4" else 0.15)


@pytest.mark.core
@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("Q4_0", "rows", 8), ("Q4_K", "rows", 8)]
    + [(name, "groups", count) for name in ("Q4_0", "Q4_K") for count in (1, 2, 8)],
)
def test_layouts_for_gpus_write_one_dense_weight_at_most_on_a_cpu(name, layout, count, temporaries):
    """XLA:CPU does not fuse dequantisation into their reduction.

    What holds there: rows of x share what is written.

    With Q4_K in groups that is, beside the weight, some float32 numbers for each 32 of its
    elements: 1.125 in all.
    """
    assert temporaries(name, layout, count) < (1.1 if layout == "rows" else 1.15)
