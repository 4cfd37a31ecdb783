"""Products of a few rows with packed weights against float64 NumPy products with ggml's values.

Most are held to the product with what the activations became, integers times scales: the kernel
computes it exactly but for the rounding of float32 sums, in every mode. What the activations lose
by that is tested by itself.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.qmatmul import (
    Product,
    Weight,
    activations,
    blocks,
    codes,
    gemv,
    multiply,
    reference,
)
from pallas_kernels.qmatmul.blocks import Tile
from pallas_kernels.targets import Target
from tests.heavy import some
from tests.pallas_kernels.conftest import GPUS, PACKED_TYPES, TARGET, lowered_to_triton
from tests.pallas_kernels.qmatmul.exact import ERRORS, FLOAT32, numbers, off
from tests.pallas_kernels.qmatmul.operands import abstract_product, abstract_weight, stack_of

pytestmark = pytest.mark.core

#: Programs of few rows and groups: small matrices have many.
SMALL = Tile(rows=4, groups=4, batch=2)


@functools.partial(jax.jit, static_argnames=("packing", "mode", "tile", "dtype"))
def _run(x, planes, packing, mode, tile=None, dtype=jnp.float32):
    acts = activations.quantize(
        x, mode, in_turn=codes.come_in_turn([packing], TARGET), target=TARGET
    )
    (y,) = gemv.multiply(acts, [Product((Weight(planes, packing),))], dtype, TARGET, tile)
    return acts, y


@functools.partial(jax.jit, static_argnames=("packings", "mode", "epsilon"))
def _run_several(x, planes, rest, norm, packings, mode, epsilon):
    products = [
        Product(tuple(map(Weight, *of)), *others, activation=SILU if len(of[0]) == 2 else None)
        for *of, others in zip(planes, packings, rest)
    ]
    outputs = multiply(
        x, products, mode=mode, dtype=jnp.float32, norm=norm, epsilon=epsilon, target=TARGET
    )
    return activations.quantize(x, mode, norm=norm, epsilon=epsilon, target=TARGET), outputs


@pytest.fixture
def check(matrix, normal):
    """A product with a matrix of reference blocks, held to what the activations became."""

    def check(name, rows, blocks, count, mode, tile=SMALL, dtype=jnp.float32):
        (planes, packing), values = matrix(name, rows, blocks)
        acts, y = _run(
            jnp.asarray(normal(count, values.shape[1]), dtype), planes, packing, mode, tile
        )
        assert (y.dtype, y.shape) == (jnp.float32, (count, rows))
        assert off(y, numbers(acts), values) < FLOAT32

    return check


def quick_types(mode, name):
    """Two integer modes are the same code but for the count of words; floats have it without sums.

    A table of values takes seconds to compile for the interpreter.
    """
    some_types = {"float": ("Q4_0", "Q5_1", "Q4_K", "Q6_K"), "int8": ("Q4_0", "Q4_K", "NVFP4")}
    return name in some_types.get(mode, PACKED_TYPES)


@pytest.mark.parametrize(
    ("mode", "name"), some(itertools.product(activations.MODES, PACKED_TYPES), quick_types)
)
def test_every_type(mode, name, check):
    """Groups that are no power of two."""
    check(name, 3, 3, 1, mode, tile=Tile(rows=1, groups=4))


@pytest.mark.parametrize("mode", activations.MODES)
def test_the_error_of_a_mode(mode, matrix, normal, distance):
    """Products as users see them: 200 outputs of 1000 inputs, so that chance plays no part."""
    (planes, packing), values = matrix("Q4_0", 200, 32)
    x = normal(2, 1024)
    _, y = _run(x, planes, packing, mode, SMALL)
    assert distance(y, np.float64(x) @ np.float64(values.T)) < ERRORS[mode]


@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [
        ("Q5_1", 1, 1),
        ("Q5_1", 3, 5),
        ("Q5_1", 9, 9),
        ("Q8_0", 4, 131),
        ("Q3_K", 5, 1),
        ("Q6_K", 9, 3),
    ],
)
def test_sizes_that_are_not_round(name, rows, blocks, check):
    """Fewer outputs than a program has, programs that overlap.

    From a single group up to many steps, the last of which overhangs.

    In K-quants steps are shorter than what shares a scale; `test_any_number_of_rows` has longer
    ones.
    """
    check(name, rows, blocks, 1, "int16", tile=Tile(rows=4, groups=4))


@pytest.mark.parametrize(
    ("count", "dtype", "batch"),
    [
        (1, "bfloat16", 2),
        (2, "float32", 2),
        (3, "float32", 2),
        (7, "bfloat16", 4),
        (8, "float32", 4),
        (9, "bfloat16", 2),
        (16, "float32", 4),
    ],
)
def test_any_number_of_rows(count, dtype, batch, check):
    """Batches overlap where they do not divide the rows."""
    check("Q4_K", 3, 3, count, "int8", tile=Tile(rows=2, groups=16, batch=batch), dtype=dtype)


@pytest.mark.parametrize("count", [1, 9])
def test_the_tile_of_a_gpu_never_seen(count, check):
    tile = blocks.gemv(count, [abstract_product("Q4_0", 7, 256)], "int16", Target("metal"))
    check("Q4_0", 7, 5, count, "int16", tile=tile)


@pytest.mark.parametrize("mode", ["int16", "float"])
def test_several_products_of_one_normed_input(mode, matrix, normal):
    """Each output of a launch: of other types, with a bias, a residual, or of two types a SwiGLU.

    All after one RMSNorm.
    """
    made = [matrix(*of) for of in (("Q4_0", 7, 8), ("Q6_K", 9, 1), ("Q5_1", 5, 8), ("Q3_K", 5, 1))]
    (first, first_values), (second, second_values), (gate, gate_values), (up, up_values) = made
    x, norm = 5 * normal(2, 256), 1 + 0.1 * normal(256)
    bias, residual, gate_residual = normal(7), normal(2, 9, seed=1), normal(2, 5, seed=1)
    planes = [(first.planes,), (second.planes,), (gate.planes, up.planes)]
    packings = ((first.packing,), (second.packing,), (gate.packing, up.packing))
    rest = [((bias,), None), (None, residual), (None, gate_residual)]
    acts, (biased, added, gated) = _run_several(x, planes, rest, norm, packings, mode, 1e-5)

    wide = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5) * norm
    wide_off = np.linalg.norm(numbers(acts) - wide) / np.linalg.norm(wide)
    assert wide_off < ERRORS[mode]
    assert off(np.asarray(biased) - bias, numbers(acts), first_values) < FLOAT32
    assert off(np.asarray(added) - residual, numbers(acts), second_values) < FLOAT32
    g, u = (numbers(acts) @ np.float64(values).T for values in (gate_values, up_values))
    truth = g / (1 + np.exp(-g)) * u + gate_residual
    # The error of either factor is relative to itself, but for sums that cancel.
    np.testing.assert_allclose(gated, truth, rtol=1e-5, atol=FLOAT32 * np.abs(g * u).max())


def test_it_equals_the_reference(matrix, normal, distance):
    """Two products of a normed input, compared for what the activations became."""
    gate, up, plain = (matrix(*of)[0] for of in (("Q4_0", 7, 8), ("Q5_1", 7, 8), ("Q4_K", 9, 1)))
    bias, residual, x, norm = normal(9), normal(2, 7), normal(2, 256), 1 + 0.1 * normal(256)
    planes, packings = zip(gate, up, plain)

    def run(x, norm, planes):
        first, second, third = map(Weight, planes, packings)
        products = [
            Product((first, second), residual=residual, activation=SILU),
            Product((third,), (bias,)),
        ]
        how = dict(norm=norm, epsilon=1e-5, target=TARGET)
        acts = activations.quantize(x, "int16", **how)
        return acts, products, multiply(x, products, mode="int16", dtype=jnp.float32, **how)

    acts, products, outputs = jax.jit(run)(x, norm, planes)
    expected = reference.multiply(jnp.asarray(numbers(acts), jnp.float32), products)
    for y, exact in zip(outputs, expected):
        assert distance(y, np.float64(exact)) < FLOAT32


@pytest.mark.parametrize(("mode", "pairs"), [("int16", 2), ("float", 6)])
def test_experts_of_a_stack(mode, pairs, matrix, normal):
    """Two rows of x; one, or three experts each, some of them the same one.

    Each pair's output goes through another stack.
    """
    made = [
        stack_of(matrix, *of)
        for of in (("Q4_0", 4, 64, 5), ("Q5_1", 4, 64, 5), ("Q2_K", 4, 9, 1), ("Q5_0", 4, 7, 2))
    ]
    (gate, gate_values), (up, up_values), (other, other_values), (down, down_values) = made
    x, wide = normal(2, 160), normal(2, 256)
    experts = np.array([2, 3, 0, 2, 2, 1][:pairs], np.int32)
    how = dict(mode=mode, dtype=jnp.float32, target=TARGET)

    def run(x, wide, experts, planes):
        weights = [Weight(of, weight.packing) for of, (weight, _) in zip(planes, made)]
        (hidden,) = multiply(
            x,
            [Product(tuple(weights[:2]), experts=experts, activation=SILU)],
            tile=Tile(2, 4),
            **how,
        )
        acts = activations.quantize(hidden, mode, target=TARGET)
        (ends,) = multiply(acts, [Product((weights[3],), experts=experts)], **how)
        (others,) = multiply(wide, [Product((weights[2],), experts=experts)], **how)
        return activations.quantize(x, mode, target=TARGET), hidden, acts, ends, others

    acts, hidden, hidden_acts, ends, others = jax.jit(run)(
        x, wide, experts, [weight.planes for weight, _ in made]
    )
    assert (hidden.shape, ends.shape, others.shape) == ((pairs, 64), (pairs, 7), (pairs, 9))
    for p, e in enumerate(experts):
        of_x = p // (pairs // 2)
        row = numbers(acts)[of_x]
        g, u = (np.float64(values[e]) @ row for values in (gate_values, up_values))
        np.testing.assert_allclose(
            hidden[p], g / (1 + np.exp(-g)) * u, rtol=1e-5, atol=FLOAT32 * np.abs(g * u).max()
        )
        assert off(ends[p : p + 1], numbers(hidden_acts)[p : p + 1], down_values[e]) < FLOAT32
        assert off(others[p : p + 1], wide[of_x : of_x + 1], other_values[e]) < ERRORS[mode]


def test_the_output_is_rounded_once_to_its_dtype(matrix, normal):
    (planes, packing), _ = matrix("Q5_0", 6, 3)
    x = normal(1, 96)

    def run(dtype):
        return np.asarray(_run(x, planes, packing, "float", SMALL, dtype)[1])

    np.testing.assert_array_equal(run(jnp.bfloat16), run(jnp.float32).astype(jnp.bfloat16))


@pytest.mark.parametrize("mode", activations.MODES)
def test_groups_of_zeros_count_nothing(mode, matrix, normal):
    """Their largest number is no divisor; a row of nothing but zeros gives zeros."""
    (planes, packing), values = matrix("Q4_1", 3, 3)
    x = normal(2, 96)
    x[0], x[1, 32:64] = 0, 0
    _, y = _run(x, planes, packing, mode, SMALL)
    assert not np.asarray(y[0]).any()
    assert off(y, x, values) < ERRORS[mode]


def test_what_lies_between_the_small_and_the_large_of_a_group(matrix):
    """One number a million times the others of its group: they fall below its step, those of other
    groups do not.
    """
    (planes, packing), values = matrix("Q8_0", 3, 2)
    x = np.full((1, 64), 1e-3, np.float32)
    x[0, 5] = 1e3
    _, y = _run(x, planes, packing, "int16", SMALL)
    expected = 1e3 * np.float64(values[:, 5]) + 1e-3 * np.float64(values[:, 32:]).sum(axis=1)
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["int16", "int8"])
def test_a_table_beside_another_type(mode, matrix, normal):
    """Two weights of one input: the bytes of activations are not in turn."""
    made, x = [matrix("IQ4_NL", 5, 3), matrix("Q4_0", 5, 3)], normal(1, 96)

    def run(x, planes):
        weights = [Weight(of, weight.packing) for of, (weight, _) in zip(planes, made)]
        outputs = multiply(
            x,
            [Product((weight,)) for weight in weights],
            mode=mode,
            dtype=jnp.float32,
            target=TARGET,
            tile=SMALL,
        )
        return activations.quantize(x, mode, target=TARGET), outputs

    acts, outputs = jax.jit(run)(x, [weight.planes for weight, _ in made])
    for y, (_, values) in zip(outputs, made):
        assert off(y, numbers(acts), values) < FLOAT32


def test_activations_in_turn_are_only_for_weights_that_are(matrix, normal):
    acts = activations.quantize(normal(1, 96), "int16", in_turn=True, target=TARGET)
    for name in ("Q4_0", "NVFP4"):
        weight, _ = matrix(name, 3, 6)
        with pytest.raises(
            ValueError, match="bytes of activations are in turn, those of weights are not"
        ):
            multiply(acts, [Product((weight,))], mode="int16", dtype=jnp.float32, target=TARGET)


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e25, 1e36])
def test_floats_of_any_size(size, matrix, normal):
    """Also of those near the ends of float32.

    What falls below its smallest normal number may count as zero.
    """
    (planes, packing), values = matrix("Q4_1", 3, 2)
    x = np.float32(size) * normal(2, 64)
    x[1, :32] *= np.float32(2.0**-20)
    _, y = _run(x, planes, packing, "float", SMALL)
    lost = 2.0**-126 * np.abs(values).sum()
    for found, row in zip(np.float64(y), np.float64(x)):
        assert (
            np.linalg.norm(found - values @ row)
            < FLOAT32 * np.linalg.norm(np.abs(values) @ np.abs(row)) + lost
        )


def test_what_is_not_finite_stays_so(matrix):
    (planes, packing), values = matrix("Q4_0", 3, 2)
    for worst in (np.inf, np.nan):
        x = np.ones((2, 64), np.float32)
        x[1, 40] = worst
        _, y = _run(x, planes, packing, "float", SMALL)
        assert np.isfinite(y[0]).all() and not np.isfinite(y[1][values[:, 40] != 0]).any()


LOWERED = [
    ("Q4_0", 32, "int16"),
    ("Q4_0", 1024, "int16"),
    ("IQ4_NL", 896, "int8"),
    ("NVFP4", 1024, "int16"),
    ("Q6_K", 2816, "float"),
    ("Q4_K", 8192, "int16"),
    ("Q5_1", 8224, "int16"),
]


def quick_targets(target, *kernel):
    """Two kernels for every target, and each of the others for one."""
    place = LOWERED.index(kernel)
    return place in (1, 4) or GPUS.index(target) == place % len(GPUS)


@pytest.mark.parametrize(
    ("target", "name", "inputs", "mode"),
    some(((target, *kernel) for kernel in LOWERED for target in GPUS), quick_targets),
    ids=str,
)
def test_kernels_lower_to_triton(target, name, inputs, mode):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here.

    With tiles of GPUs: rows that are shorter than one, fill one, and take several, the last one
    full or not.
    """
    planes, packing = abstract_weight(name, 12, inputs)
    x, norm = (
        jax.ShapeDtypeStruct((2, inputs), jnp.bfloat16),
        jax.ShapeDtypeStruct((inputs,), jnp.float32),
    )

    def run(x, norm, planes):
        how = dict(mode=mode, dtype=jnp.bfloat16, target=target)
        one = multiply(x[:1], [Product((Weight(planes, packing),))], norm=norm, epsilon=1e-5, **how)
        pair = Product((Weight(planes, packing),) * 2, activation=SILU)
        return one, multiply(
            x, [pair, Product((Weight(planes, packing),), biases=(jnp.ones(12),))], **how
        )

    assert lowered_to_triton(target, run, x, norm, planes).count("__gpu$xla.gpu.triton") == 4


@pytest.mark.parametrize(
    ("rows", "name", "weights", "mode", "waits"),
    [
        (4096, "Q4_0", 1, "int16", True),
        (57344, "Q4_0", 1, "int16", True),
        (57344, "Q2_K", 1, "int16", False),
        (4096, "Q4_0", 1, "float", False),
        (14336, "Q4_0", 2, "int16", True),
        (14336, "IQ4_XS", 2, "int16", False),
    ],
)
def test_where_loads_come_first(rows, name, weights, mode, waits):
    """On NVIDIA GPUs, where nothing else hides the latency of memory: in launches of few programs,
    and of any number for types that are quick to compute with; floats leave no registers for it.
    """
    planes, packing = abstract_weight(name, rows, 4096)
    for target in GPUS:

        def run(x, planes, target=target):
            return multiply(
                x,
                [
                    Product(
                        (Weight(planes, packing),) * weights,
                        activation=SILU if weights == 2 else None,
                    )
                ],
                mode=mode,
                dtype=jnp.float32,
                target=target,
            )

        text = lowered_to_triton(target, run, jax.ShapeDtypeStruct((1, 4096), jnp.bfloat16), planes)
        # The zero that the look-ups of a table share has the same assembly, but takes nothing of
        # what was loaded.
        assert ("and.b32 $0, $1, zero" in text) == (waits and target.platform == "cuda")


@pytest.mark.parametrize(
    ("target", "can"),
    [*((target, target.platform == "cuda") for target in GPUS), (Target("cuda", "8.0"), False)],
    ids=str,
)
@pytest.mark.parametrize(("rows", "some"), [(64, 0), (20001, 1)])
def test_the_next_launch_begins_early_where_a_gpu_can(target, can, rows, some):
    """Both launches, quantising and multiplying, say so.

    Of the programs of a long one only those that are last.
    """
    planes, packing = abstract_weight("Q4_0", rows, 4096)

    def run(x, planes):
        return multiply(
            x, [Product((Weight(planes, packing),))], mode="int16", dtype=jnp.float32, target=target
        )

    text = lowered_to_triton(target, run, jax.ShapeDtypeStruct((1, 4096), jnp.bfloat16), planes)
    assert text.count("griddepcontrol.launch_dependents") == (2 if can else 0)
    assert text.count("@last griddepcontrol.launch_dependents") == (some if can else 0)


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize(("tokens", "used"), [(1, 8), (3, 2)])
def test_experts_lower_to_triton(target, tokens, used):
    """Two launches, and one before each that quantises, whatever the number of pairs.

    A stack is read where it lies.
    """
    made = abstract_weight("Q4_K", 768, 2048, 16), abstract_weight("Q6_K", 2048, 768, 16)
    stacks, packings = zip(*made)
    x, experts = (
        jax.ShapeDtypeStruct((tokens, 2048), jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens * used,), jnp.int32),
    )

    def run(x, experts, gate, down):
        how, (first, second) = dict(mode="int16", target=target), packings
        (hidden,) = multiply(
            x,
            [Product((Weight(gate, first),) * 2, experts=experts, activation=SILU)],
            dtype=jnp.bfloat16,
            **how,
        )
        return multiply(
            hidden, [Product((Weight(down, second),), experts=experts)], dtype=jnp.float32, **how
        )

    text = lowered_to_triton(target, run, x, experts, *stacks)
    assert text.count("__gpu$xla.gpu.triton") == 4 and "dynamic_slice" not in text
