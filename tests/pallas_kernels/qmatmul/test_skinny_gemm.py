"""Products of tens of rows against float64 NumPy products with ggml's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.qmatmul import Product, Weight, blocks, multiply_skinny
from pallas_kernels.qmatmul.blocks import MatrixTile
from pallas_kernels.samples import random_planes
from pallas_kernels.targets import Target
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import GPUS, PACKED_TYPES, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: Values are rounded to x's type, their products are exact in float32: what is left is the order of
#: the sum. The matrix units of a GPU cut off bits below the largest product that they add: 1.5e-6
#: on an H200.
FLOAT32 = 1e-6 if TARGET.interpret else 4e-6

_multiply_all = jax.jit(
    functools.partial(multiply_skinny, target=TARGET), static_argnames=("tile", "dtype")
)


def _multiply(x, weight, tile=None, experts=None):
    product = Product((weight,), experts=experts)
    return _multiply_all(x, [product], dtype=jnp.float32, tile=tile)[0]


@pytest.fixture
def check(matrix, normal, distance):
    def check(name, rows, blocks, count, tile, dtype=jnp.bfloat16):
        weight, values = matrix(name, rows, blocks)
        x = jnp.asarray(normal(count, values.shape[1]), dtype)
        y = _multiply(x, weight, tile=tile)
        assert (y.dtype, y.shape) == (jnp.float32, (count, rows))
        rounded = np.asarray(jnp.asarray(values).astype(dtype)).astype(np.float64)
        assert distance(y, np.asarray(x).astype(np.float64) @ rounded.T) < FLOAT32

    return check


def tile(rows=16, groups=16, batch=16, **how):
    return MatrixTile(rows=rows, groups=groups, batch=batch, warps=4, **how)


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_every_type(name, check):
    """Neither rows nor outputs nor groups fill their tiles."""
    check(name, 21, 3, 9, tile())


@pytest.mark.parametrize("name", ["Q5_0", "Q6_K"])
def test_float16_keeps_more_of_each_value(name, check):
    check(name, 21, 5, 64, tile(groups=4, batch=32), jnp.float16)


@pytest.mark.parametrize(("groups", "lanes", "run"), [(4, 1, 32), (8, 2, 8), (4, 4, 4), (8, 4, 1)])
def test_orders_of_the_inputs(groups, lanes, run, check):
    """As the matrix units of several GPUs take them.

    A tile lies within the groups that share a scale, or holds several of these.
    """
    check("Q2_K", 9, 2, 3, tile(groups=groups, lanes=lanes, run=run))


@pytest.mark.parametrize(("rows", "dtype"), [(16, "bfloat16"), (32, "float16")])
def test_matrices_of_a_stack(rows, dtype, normal, distance):
    """Each tile of rows of x times the matrix that is named for it, in any order, some twice, one
    not at all; no matrix leaves a tile alone.
    """
    packing, (E, N, G) = word_packed.packing(formats.get("Q4_K")), (4, 37, 24)
    stack = jax.jit(lambda key: random_planes(key, packing, E * N, G))(jax.random.key(2))
    stack = {name: plane.reshape(E, N, *plane.shape[1:]) for name, plane in stack.items()}
    experts = [2, 0, -1, 2, 3]
    x = jnp.asarray(normal(len(experts) * rows, 32 * G), dtype)
    y = np.asarray(_multiply(x, Weight(stack, packing), experts=jnp.int32(experts)))
    assert (y.dtype, y.shape) == (np.float32, (len(x), N))
    for i, e in enumerate(experts):
        if e >= 0:
            part = slice(i * rows, (i + 1) * rows)
            alone = _multiply(
                x[part], Weight({name: plane[e] for name, plane in stack.items()}, packing)
            )
            assert distance(y[part], np.float64(alone)) < FLOAT32


@pytest.mark.parametrize(("rows", "count"), [(33, 2), (24, 1), (16, 2)])
def test_rows_that_experts_cannot_share_are_refused(rows, count, matrix):
    (planes, packing), _ = matrix("Q4_0", 7, 1)
    stack = {name: plane[None] for name, plane in planes.items()}
    with pytest.raises(
        ValueError,
        match=(
            f"{rows} rows for {count} experts are {rows / count:g} each: it must be a power of two"
            " from 16"
        ),
    ):
        _multiply(
            jnp.zeros((rows, 32), jnp.bfloat16),
            Weight(stack, packing),
            experts=jnp.zeros(count, jnp.int32),
        )


@pytest.mark.parametrize(
    ("rows", "blocks", "count", "splits", "dtype"),
    [
        (1, 1, 1, 1, "bfloat16"),
        (35, 33, 40, 1, "float16"),
        (5, 70, 17, 2, "bfloat16"),
        (7, 3, 2, 8, "bfloat16"),
    ],
)
def test_sizes_and_shares(rows, blocks, count, splits, dtype, check):
    """Several tiles along every axis; shares of the inputs, some of them empty."""
    check("Q5_0", rows, blocks, count, tile(splits=splits), dtype)


def test_the_tile_of_a_gpu_never_seen(check):
    check("Q4_0", 40, 5, 33, None)


def alone(x, weight, target, experts=None):
    return multiply_skinny(
        x, [Product((weight,), experts=experts)], dtype=jnp.float32, target=target
    )


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize(
    ("name", "inputs"), [("Q4_0", 32), ("Q6_K", 2816), ("IQ4_NL", 4096), ("MXFP4", 896)]
)
def test_it_lowers_to_triton(target, name, inputs):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here."""
    packing = word_packed.packing(formats.get(name))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, 12, inputs // 32))
    x = jax.ShapeDtypeStruct((33, inputs), jnp.bfloat16)
    lowered = lowered_to_triton(
        target,
        lambda x, planes: alone(x, Weight(planes, packing), target),
        x,
        planes,
    )
    product = Product((Weight(planes, packing),))
    has_partial_sums = blocks.skinny_gemm(33, [product], target).splits > 1
    # A launch that orders x, the product, and one that adds partial sums.
    assert lowered.count("__gpu$xla.gpu.triton") == 2 + has_partial_sums
    stack = {
        name: jax.ShapeDtypeStruct((8, *plane.shape), plane.dtype) for name, plane in planes.items()
    }
    x, experts = (
        jax.ShapeDtypeStruct((96, inputs), jnp.bfloat16),
        jax.ShapeDtypeStruct((6,), jnp.int32),
    )

    def run(x, stack, experts):
        return alone(x, Weight(stack, packing), target, experts)

    assert lowered_to_triton(target, run, x, stack, experts).count("__gpu$xla.gpu.triton") == 2


@pytest.mark.parametrize(("rows", "early"), [(16, True), (33, False)])
def test_nothing_begins_early_beside_large_tiles(rows, early):
    """It would take room from them."""
    packing, target = word_packed.packing(formats.get("Q4_0")), Target("cuda", "9.0")
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, 512, 64))

    def run(x, planes):
        return alone(x, Weight(planes, packing), target)

    text = lowered_to_triton(target, run, jax.ShapeDtypeStruct((rows, 2048), jnp.bfloat16), planes)
    # The launches before and after the product always let the next one begin early.
    assert text.count("griddepcontrol.launch_dependents") == 2 + early
