"""The kernel in Triton's language, in Triton's interpreter: ggml's values, and Pallas's bits.

AMD's instructions are emulated; `interpreter` says from what.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.qmatmul import Product, Weight, activations, gemv
from pallas_kernels.qmatmul.blocks import Tile
from pallas_kernels.samples import random_planes
from pallas_kernels.targets import INTERPRET, Target
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import PACKED_TYPES
from tests.pallas_kernels.qmatmul.exact import FLOAT32, numbers, off

# Triton 3.9 warns of what a version after it will do.
pytestmark = [pytest.mark.jax_triton, pytest.mark.filterwarnings("default")]

GFX9, GFX12 = Target("rocm", "gfx942"), Target("rocm", "gfx1201")
#: Types of every kind of code and of scale that others of the list do not have.
KINDS = ("Q4_0", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "MXFP4", "NVFP4")


@pytest.fixture
def check(interpreter, matrix, normal):
    """A product with a matrix of reference blocks, held to what the activations became."""

    def check(name, rows, blocks, count, mode, target=GFX9, tile=None, dtype="float32"):
        weight, values = matrix(name, rows, blocks)
        acts = activations.quantize_reference(jnp.asarray(normal(count, values.shape[1])), mode)
        y = interpreter.multiply(acts, weight, target, dtype, tile)
        assert (y.dtype, y.shape) == (np.dtype(dtype), (count, rows))
        return off(y, numbers(acts), values)

    return check


@pytest.mark.parametrize(
    ("mode", "target", "names"),
    [("int16", GFX9, PACKED_TYPES), ("int8", GFX12, KINDS), ("float", GFX9, KINDS)],
    ids=["int16", "int8", "float"],
)
def test_every_type(mode, target, names, check):
    errors = {name: check(name, 2, 2, 1, mode, target, Tile(1, 16)) for name in names}
    assert {name: error for name, error in errors.items() if not error < FLOAT32} == {}


@pytest.mark.parametrize(
    ("name", "rows", "blocks", "count", "tile"),
    [
        ("Q5_1", 1, 1, 1, Tile(4, 64)),  # fewer rows and groups than a program has
        (
            "Q4_0",
            5,
            7,
            1,
            Tile(2, 4),
        ),  # programs that overlap, and a last step that is partly empty
        ("Q4_K", 2, 1, 3, Tile(2, 8, batch=2)),  # batches that overlap
        ("Q8_0", 2, 3, 16, Tile(2, 4, batch=8)),
    ],
)
def test_sizes_that_are_not_round(name, rows, blocks, count, tile, check):
    assert check(name, rows, blocks, count, "int8", tile=tile) < FLOAT32


@pytest.mark.parametrize("target", [GFX9, GFX12], ids=str)
def test_the_tile_of_a_gpu(target, check):
    assert check("Q4_0", 5, 5, 1, "int16", target) < FLOAT32


def test_outputs_of_half_precision(check):
    """8 bits of a result in bfloat16 are 11 in float16."""
    assert FLOAT32 < check("Q4_0", 3, 4, 1, "int16", tile=Tile(1, 4), dtype="float16") < 1e-3


@pytest.mark.parametrize(
    ("mode", "name"), [("int8", "Q4_K"), *(("int16", name) for name in KINDS[:-1])]
)
def test_integers_have_the_bits_of_pallas(mode, name, interpreter):
    """With small integers, and scales that are powers of two, no sum of 24 bits is rounded."""
    packing = word_packed.packing(formats.get(name))
    groups = max(2, packing.span)
    planes = random_planes(jax.random.key(1), packing, 3, groups)
    weight = Weight(planes | _powers_of_two(packing, planes), packing)
    # The largest number of a group decides its scale, 1.
    x = np.random.default_rng(2).integers(-100, 101, (2, groups, 32)).astype(np.float32)
    x[:, :, 5] = activations.LARGEST[mode]
    acts = activations.quantize_reference(jnp.asarray(x.reshape(2, -1)), mode)
    (theirs,) = gemv.multiply(acts, [Product((weight,))], jnp.float32, INTERPRET, Tile(1, 8))
    ours = interpreter.multiply(acts, weight, GFX9, tile=Tile(1, 8, batch=2))
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours).min() > 0


def _powers_of_two(packing, planes):
    """Replacements of the planes of scales: 1 or 1/2, times multiples of at most 3."""
    powers = {}
    if "d" in planes:
        d = np.arange(planes["d"].size).reshape(planes["d"].shape) % 2 / 2 + 0.5
        bits = d.astype(np.float16)
        powers["d"] = (
            (bits.view(np.uint16).astype(np.uint32) * 0x10001) if packing.minimum else bits
        )
    if "scale" in planes:
        small = np.asarray(planes["scale"]) % 4
        if packing.scale == "bytes":
            small = small * 0x101
        if packing.scale == "e8m0":
            small = small % 2 + 127
        powers["scale"] = small.astype(planes["scale"].dtype)
    return {name: jnp.asarray(plane) for name, plane in powers.items()}
