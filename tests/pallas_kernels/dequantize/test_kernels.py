"""Values of packed planes, by the kernel and in plain jnp: equal to ggml's to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dequantize as op
from pallas_kernels.dequantize import reference
from pallas_kernels.dequantize.blocks import BLOCKS
from pallas_kernels.samples import random_planes
from pallas_kernels.targets import of_family
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import GPUS, PACKED_TYPES, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

_kernel = jax.jit(functools.partial(op.dequantize, target=TARGET), static_argnums=(1, 2))
_reference = jax.jit(reference.dequantize, static_argnums=(1, 2))
BACKENDS = {"pallas": _kernel, "xla": _reference}


@pytest.fixture(params=BACKENDS)
def dequantize(request):
    return BACKENDS[request.param]


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_every_type(name, dequantize, matrix):
    weight, values = matrix(name, 7, 3)
    np.testing.assert_array_equal(bits(dequantize(*weight, jnp.float32)), bits(values))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q2_K", "Q6_K", "MXFP4"])
def test_other_dtypes_are_the_rounding_of_the_values(name, dtype, dequantize, matrix):
    weight, values = matrix(name, 7, 3)
    out = dequantize(*weight, dtype)
    assert out.dtype == dtype
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(bits(out), bits(values.astype(dtype)))


@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [
        ("Q8_0", 1, 1),
        ("Q5_0", 1, 5),
        ("Q4_1", 33, 2),
        ("Q3_K", 5, 1),
        ("Q4_K", 2, 17),
        ("Q5_0", 3, 131),
        ("NVFP4", 3, 67),
    ],
)
def test_shapes_that_are_not_round(name, rows, blocks, dequantize, matrix):
    """The longest rows take several programs, the last of which overhangs them."""
    weight, values = matrix(name, rows, blocks)
    if blocks > 60:
        assert values.shape[1] > (of_program := 4 * of_family(BLOCKS, TARGET).fours)
        assert values.shape[1] % of_program
    np.testing.assert_array_equal(bits(dequantize(*weight, jnp.float32)), bits(values))


@pytest.mark.parametrize("name", ["Q4_1", "Q3_K", "Q5_K", "NVFP4"])
def test_both_agree_on_random_planes(name, matrix):
    """Every bit of the codes, and scales that ggml's quantiser does not choose."""
    packing = matrix(name, 1, 1)[0].packing
    planes = random_planes(jax.random.key(3), packing, 5, 24)
    np.testing.assert_array_equal(
        bits(_kernel(planes, packing, jnp.float32)), bits(_reference(planes, packing, jnp.float32))
    )


@pytest.mark.parametrize("lowest", [0, 1, 2, 100])
def test_powers_of_two_of_every_size(lowest, matrix):
    """Values down to subnormal ones, by integers, and where there are none by a multiplication; up
    to infinite ones. The last program overhangs its row, where it reads the exponent 0.
    """
    packing = matrix("MXFP4", 1, 1)[0].packing
    planes = random_planes(jax.random.key(3), packing, 3, 136)
    exponents = np.random.default_rng(lowest).integers(lowest, 256, (3, 1, 136), dtype=np.uint8)
    exponents[:, 0, 5], exponents[:, 0, 6] = lowest, 255
    planes["scale"] = jnp.asarray(exponents)
    found, expected = (np.asarray(f(planes, packing, jnp.float32)) for f in (_kernel, _reference))
    np.testing.assert_array_equal(bits(found), bits(expected))
    assert np.isinf(expected).any() and (np.abs(expected[expected != 0]).min() < 2.0**-126) == (
        lowest < 2
    )


def test_the_reference_takes_stacks(matrix):
    (weight, values), (other, other_values) = matrix("Q6_K", 7, 3), matrix("Q6_K", 7, 3)
    stacked = jax.tree.map(
        lambda *planes: jnp.stack(planes),
        weight.planes,
        {k: v[::-1] for k, v in other.planes.items()},
    )
    np.testing.assert_array_equal(
        _reference(stacked, weight.packing, jnp.float32), np.stack([values, other_values[::-1]])
    )


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize("name", ["Q5_1", "Q6_K", "IQ4_NL", "MXFP4", "NVFP4"])
def test_it_lowers_to_triton(target, name):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here."""
    packing = word_packed.packing(formats.get(name))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, 3, 136))
    lowered = lowered_to_triton(
        target,
        lambda planes: op.dequantize(planes, packing, jnp.bfloat16, target=target),
        planes,
    )
    assert lowered.count("__gpu$xla.gpu.triton") == 1


def test_a_stack_is_refused(matrix):
    (planes, packing), _ = matrix("Q4_0", 7, 3)
    stack = {name: plane[None] for name, plane in planes.items()}
    with pytest.raises(ValueError, match=r"\[N, bits, K / 32\], got 4: \[1, 7, 4, 3\]"):
        op.dequantize(stack, packing, jnp.float32, target=TARGET)
