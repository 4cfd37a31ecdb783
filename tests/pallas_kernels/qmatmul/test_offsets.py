"""What kernels can address: no plane of a large model has 2**31 elements, or is 2 GiB of bytes."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.qmatmul import Product, Weight, check_offsets, multiply
from pallas_kernels.targets import INTERPRET
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import PACKED_TYPES

pytestmark = pytest.mark.core

#: (rows, inputs) of the matrices of a 70B model, and of one expert and the router of a model of 128
#: experts.
MATRICES = {
    "70b": [(8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672), (128256, 8192)],
    "128-experts": [(768, 2048), (2048, 768), (128, 2048), (151936, 2048)],
}
EXPERTS = 128


def planes_of(name, *shape):
    """The abstract planes of a packed matrix [..., rows, inputs]."""
    fmt = formats.get(name)
    *lead, inputs = shape
    blocks = jax.ShapeDtypeStruct((*lead, inputs // fmt.block, fmt.block_bytes), jnp.uint8)
    return jax.eval_shape(lambda blocks: word_packed.split(fmt.split(blocks), fmt), blocks)


@pytest.mark.parametrize("name", PACKED_TYPES)
@pytest.mark.parametrize("model", MATRICES)
def test_every_matrix_of_a_large_model_can_be_addressed(model, name):
    for shape in MATRICES[model]:
        planes = planes_of(name, *shape)
        assert planes["codes"].shape[0] == shape[0]
        check_offsets(planes)


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_no_plane_of_bytes_comes_near_the_limit(name):
    """Codes are words, whose number is an eighth of that of bytes or less: a matrix may be far
    larger than its bytes may be.
    """
    planes = planes_of(name, 128256, 8192)
    sizes = {plane: array.size * array.dtype.itemsize for plane, array in planes.items()}
    assert planes["codes"].dtype == jnp.uint32
    assert all(
        size < 2**31 / 16 for plane, size in sizes.items() if planes[plane].dtype.itemsize == 1
    )


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_a_stack_of_experts_can_be_addressed_or_one_expert_of_it(name):
    """That of 128 experts; and where a stack is refused, each expert is copied out of it."""
    check_offsets(planes_of(name, EXPERTS, 768, 2048))
    with pytest.raises(
        NotImplementedError,
        match="the plane codes has .* elements, a kernel addresses fewer than 2147483648",
    ):
        check_offsets(planes_of(name, EXPERTS * 128, 768 * 4, 2048))
    stack = planes_of(name, EXPERTS, 768 * 4, 2048)
    one = jax.eval_shape(lambda planes: jax.tree.map(lambda plane: plane[0], planes), stack)
    assert one["codes"].shape[0] == 768 * 4
    check_offsets(one)


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((2**31 - 1,), jnp.uint8, True),
        ((2**31,), jnp.uint8, False),
        ((2**16, 2**15), jnp.int8, False),
        ((2**31 - 1,), jnp.uint32, True),
        ((2**15, 2**16), jnp.uint32, False),
        ((2**31,), jnp.float16, False),
    ],
)
def test_the_limit(shape, dtype, fits):
    planes = {
        "codes": jax.ShapeDtypeStruct((1,), jnp.uint32),
        "scale": jax.ShapeDtypeStruct(shape, dtype),
    }
    if fits:
        check_offsets(planes)
        return
    with pytest.raises(
        NotImplementedError,
        match="the plane scale has 2147483648 elements, a kernel addresses fewer than 2147483648",
    ):
        check_offsets(planes)


def test_a_product_with_planes_that_are_too_large_is_refused_before_anything_is_launched():
    fmt = formats.get("Q8_0")
    planes = planes_of("Q8_0", 2**20, 2**13)
    x = jax.ShapeDtypeStruct((1, 2**13), jnp.float32)

    def product(x, planes):
        return multiply(
            x,
            [Product((Weight(planes, word_packed.packing(fmt)),))],
            mode="int16",
            dtype=jnp.float32,
            target=INTERPRET,
        )

    with pytest.raises(NotImplementedError, match="the plane codes has 2147483648 elements"):
        jax.eval_shape(product, x, planes)
