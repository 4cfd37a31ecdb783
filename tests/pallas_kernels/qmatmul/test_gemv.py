"""Products of a few rows with packed weights against float64 NumPy products with ggml's values.

Most are held to the product with what the activations became, integers times scales: the kernel
computes it exactly but for the rounding of float32 sums, in every mode. What the activations lose
by that is tested by itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton
from pallas_kernels.qmatmul import activations, blocks, codes, gemv
from pallas_kernels.qmatmul.api import FEW_ROWS, Product, Weight, multiply
from pallas_kernels.qmatmul.blocks import Tile
from pallas_kernels.samples import random_planes
from pallas_kernels.targets import Target
from rocmforge_jax import formats
from rocmforge_jax.quant import word_packed
from tests.pallas_kernels.conftest import GPUS, PACKED_TYPES, TARGET, lowered_to_triton

pytestmark = pytest.mark.core

#: A float32 sum of K products of random sign is off by a few 1e-7, whatever its order.
FLOAT32 = 1e-6
#: What becomes of normal numbers. A group's integers are off by up to half, evenly, so by 0.29 of
#: the scale in the mean; the scale is the group's largest number, about 2 for 32 of them, over
#: 16256 or 127: 4e-5 and 5e-3 of a number of size 1. A product with random weights is off by as
#: much; one with few outputs, or weights of one sign, by chance by more.
ERRORS = {"int16": 1e-4, "int8": 8e-3, "float": FLOAT32}
#: Programs of few rows and groups: small matrices have many.
SMALL = Tile(rows=4, groups=4, batch=2)


@functools.partial(jax.jit, static_argnames=("packing", "mode", "tile", "dtype"))
def _run(x, planes, packing, mode, tile=None, dtype=jnp.float32):
    acts = activations.quantize(
        x, mode, in_turn=codes.come_in_turn([packing], TARGET), target=TARGET
    )
    job = gemv.Job((packing,), planes["codes"].shape[0])
    (y,) = gemv.multiply(acts, [job], [gemv.Operands([planes])], dtype, TARGET, tile)
    return acts, y


@functools.partial(jax.jit, static_argnames=("packings", "mode", "epsilon"))
def _run_several(x, planes, rest, norm, packings, mode, epsilon):
    products = [
        Product(tuple(map(Weight, *weights)), *others)
        for *weights, others in zip(planes, packings, rest)
    ]
    outputs = multiply(
        x, products, mode=mode, dtype=jnp.float32, norm=norm, epsilon=epsilon, target=TARGET
    )
    return activations.quantize(x, mode, norm=norm, epsilon=epsilon, target=TARGET), outputs


def integers(acts):
    """The integers of activations [M, G, 32], from their bytes."""
    words = np.ascontiguousarray(acts.words)
    by_part = np.moveaxis(words.view(np.int8).reshape(*words.shape, 4), 3, 2)
    if (
        acts.in_turn
    ):  # two bytes of position p, and of 4 + p, are in word p and the two others in word 4 + p
        by_part = np.moveaxis(
            by_part.reshape(*by_part.shape[:3], 2, 4, 2, 2), (3, 4, 5, 6), (5, 4, 6, 3)
        )
    parts = by_part.reshape(*by_part.shape[:3], 32).astype(np.int64)
    return parts[:, 0] if acts.mode == "int8" else 128 * parts[:, 0] + parts[:, 1]


def numbers(acts):
    """What activations stand for, float64 [M, K]."""
    if acts.mode == "float":
        words = np.moveaxis(np.float64(acts.words)[:, 0], 1, 2) / activations.FLOATS_UNIT
        unnormed = (words * np.float64(acts.scale)[..., None]).reshape(acts.rows, -1)
    else:
        unnormed = (integers(acts) * np.float64(acts.scale)[..., None]).reshape(acts.rows, -1)
    if acts.squares is None:
        return unnormed
    return unnormed / np.sqrt(
        np.float64(acts.squares).sum(axis=1, keepdims=True) / unnormed.shape[1] + acts.epsilon
    )


def off(y, x, values):
    """How far y [M, N] is from x [M, K] @ values [N, K].T, in relation to the size of such a
    product where signs are random.

    A few outputs may be small by chance; their error is not.
    """
    x, values = np.asarray(x).astype(np.float64), np.asarray(values).astype(np.float64)
    return np.linalg.norm(np.float64(y) - x @ values.T) / np.sqrt((x**2 @ (values**2).T).sum())


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


# Two integer modes are the same code but for the count of words. A table of values takes seconds to
# compile for the interpreter.
@pytest.mark.parametrize(
    ("mode", "name"),
    [("int16", name) for name in PACKED_TYPES]
    + [("float", name) for name in PACKED_TYPES if name not in ("IQ4_NL", "IQ4_XS", "MXFP4")]
    + [("int8", name) for name in ("Q4_0", "Q4_K", "NVFP4")],
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
    tile = blocks.gemv(
        count,
        8,
        [gemv.Job((groups.packing(formats.get("Q4_0")),), 7)],
        "int16",
        Target("metal"),
    )
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
    rest = [(bias, None), (None, residual), (None, gate_residual)]
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


def stack_of(matrix, name, experts, rows, blocks):
    """A stack of matrices of a type, and its values [E, N, K]."""
    weight, values = matrix(name, experts * rows, blocks)
    planes = {
        plane: array.reshape(experts, rows, *array.shape[1:])
        for plane, array in weight.planes.items()
    }
    return Weight(planes, weight.packing), values.reshape(experts, rows, -1)


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
            x, [Product(tuple(weights[:2]), experts=experts)], tile=Tile(2, 4), **how
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


def test_experts_that_do_not_fit_are_refused(matrix):
    (stack, _), (one, _) = stack_of(matrix, "Q4_0", 4, 64, 5), matrix("Q4_0", 64, 5)
    call = functools.partial(
        multiply, jnp.zeros((2, 160)), mode="int16", dtype=jnp.float32, target=TARGET
    )

    def of(count):
        return jnp.zeros(count, jnp.int32)

    with pytest.raises(
        ValueError, match=r"experts for the same multiple of 2 rows, or none; got \[3\]"
    ):
        call([Product((stack,), experts=of(3))])
    with pytest.raises(
        ValueError, match=r"experts for the same multiple of 2 rows, or none; got \[4, 'none'\]"
    ):
        call([Product((stack,), experts=of(4)), Product((one,))])
    with pytest.raises(ValueError, match="a product without experts has planes of 3 axes, got 4"):
        call([Product((stack,))])
    with pytest.raises(ValueError, match="a product with experts has planes of 4 axes, got 3"):
        call([Product((one,), experts=of(2))])


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


@pytest.mark.parametrize(("normed", "dtype"), [(False, "bfloat16"), (True, "float32")])
@pytest.mark.parametrize("mode", activations.MODES)
def test_quantize_equals_its_reference(mode, normed, dtype, normal, distance):
    """75 groups take ten programs.

    Equal but for numbers that lie between two integers to the last bit of float32: where the
    compiler fuses a multiplication with the addition of a half, such a number is rounded to the
    other side.
    """
    x, settings = (
        jnp.asarray(normal(3, 2400), dtype),
        (dict(norm=1 + 0.1 * normal(2400), epsilon=1e-6) if normed else {}),
    )
    x = x.at[1, 64:96].set(0)
    kernel = jax.jit(functools.partial(activations.quantize, mode=mode, target=TARGET, **settings))(
        x
    )
    plain = jax.jit(functools.partial(activations.quantize_reference, mode=mode, **settings))(x)
    wide = np.asarray(x).astype(np.float64)
    if normed:
        wide = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-6) * settings["norm"]
    assert distance(numbers(kernel), wide) < ERRORS[mode]
    # The mean square is a sum in another order.
    rounding = 1e-6 if normed else 0
    np.testing.assert_allclose(kernel.scale, plain.scale, rtol=rounding)
    if mode == "float":
        assert np.abs(kernel.words).max() < 2 * activations.FLOATS_UNIT
        np.testing.assert_allclose(kernel.words, plain.words, rtol=rounding)
        np.testing.assert_allclose(kernel.sums, plain.sums, rtol=1e-6, atol=1e-5)
        return
    difference = integers(kernel) - integers(plain)
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < (0.01 if normed else 1e-3)
    for acts in (kernel, plain):
        assert np.abs(integers(acts)).max() == activations.LARGEST[mode]
        np.testing.assert_array_equal(
            acts.sums, np.moveaxis(integers(acts).reshape(3, 75, 2, 16).sum(axis=-1), 1, 2)
        )


@pytest.mark.parametrize("mode", activations.MODES)
def test_bytes_in_turn_are_the_same_bytes(mode, normal):
    """Of floats there are none."""
    x = normal(2, 2400)
    in_turn, plain = (
        jax.jit(functools.partial(activations.quantize, mode=mode, in_turn=turn, target=TARGET))(x)
        for turn in (True, False)
    )
    assert in_turn.in_turn == (mode != "float") and not plain.in_turn
    np.testing.assert_array_equal(in_turn.sums, plain.sums)
    np.testing.assert_array_equal(numbers(in_turn), numbers(plain))
    assert (np.asarray(in_turn.words) != plain.words).any() == in_turn.in_turn


@pytest.mark.parametrize(
    ("names", "platform", "turn"),
    [
        (["IQ4_XS", "MXFP4"], "cuda", True),
        (["IQ4_NL"], "rocm", False),
        (["IQ4_NL", "Q4_0"], "cuda", False),
        (["NVFP4"], "cuda", False),
    ],
)
def test_bytes_are_in_turn_where_all_weights_have_tables(names, platform, turn):
    """And one scale a group; AMD's GPUs look bytes up in their order."""
    assert (
        codes.come_in_turn(
            [word_packed.packing(formats.get(name)) for name in names], Target(platform)
        )
        == turn
    )


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


@pytest.mark.parametrize("mode", ["int16", "int8"])
def test_quantized_numbers_are_half_a_step_off_at_most(mode, normal):
    x = normal(2, 320)
    acts = activations.quantize_reference(x, mode)
    off = np.abs(numbers(acts) - x).reshape(2, 10, 32)
    # Beyond half a step by the rounding of x * (1 / step) alone: 1e-7 of the largest number.
    assert (off / np.float64(acts.scale)[..., None]).max() <= 0.5 + 1e-7 * activations.LARGEST[mode]


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize(
    ("name", "inputs", "mode"),
    [
        ("Q4_0", 32, "int16"),
        ("Q4_0", 1024, "int16"),
        ("IQ4_NL", 896, "int8"),
        ("NVFP4", 1024, "int16"),
        ("Q6_K", 2816, "float"),
        ("Q4_K", 8192, "int16"),
        ("Q5_1", 8224, "int16"),
    ],
)
def test_kernels_lower_to_triton(target, name, inputs, mode):
    """The interpreter runs what GPUs do not have: an operation without a rule is an error here.

    With tiles of GPUs: rows that are shorter than one, fill one, and take several, the last one
    full or not.
    """
    packing = word_packed.packing(formats.get(name))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, 12, inputs // 32))
    x, norm = (
        jax.ShapeDtypeStruct((2, inputs), jnp.bfloat16),
        jax.ShapeDtypeStruct((inputs,), jnp.float32),
    )

    def run(x, norm, planes):
        how = dict(mode=mode, dtype=jnp.bfloat16, target=target)
        one = multiply(x[:1], [Product((Weight(planes, packing),))], norm=norm, epsilon=1e-5, **how)
        pair = Product((Weight(planes, packing), Weight(planes, packing)))
        return one, multiply(
            x, [pair, Product((Weight(planes, packing),), bias=jnp.ones(12))], **how
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
    packing = word_packed.packing(formats.get(name))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, rows, 128))
    for target in GPUS:

        def run(x, planes):
            return multiply(
                x,
                [Product((Weight(planes, packing),) * weights)],
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
    packing = word_packed.packing(formats.get("Q4_0"))
    planes = jax.eval_shape(lambda: random_planes(jax.random.key(0), packing, rows, 128))

    def run(x, planes):
        return multiply(
            x, [Product((Weight(planes, packing),))], mode="int16", dtype=jnp.float32, target=target
        )

    text = lowered_to_triton(target, run, jax.ShapeDtypeStruct((1, 4096), jnp.bfloat16), planes)
    assert text.count("griddepcontrol.launch_dependents") == (2 if can else 0)
    assert text.count("@last griddepcontrol.launch_dependents") == (some if can else 0)


@pytest.mark.parametrize(
    ("rows", "inputs", "pairs", "mode", "outputs"),
    [
        (2048, 768, 64, "int16", 8),
        (768, 2048, 8, "int8", 4),
        (768, 768, 1, "int16", 2),
        (2048, 768, 64, "float", 4),
        (14336, 4096, 1, "int16", 2),
    ],
)
@pytest.mark.parametrize("name", ["Q4_K", "Q2_K"])
def test_short_rows_are_taken_together(name, rows, inputs, pairs, mode, outputs):
    """Where there are many, and registers for it, which floats fill: starting a program takes as
    long as some rows of a step each.
    """
    job = gemv.Job((groups.packing(formats.get(name)),), rows)
    assert blocks.gemv(1, inputs // 32, [job], mode, Target("cuda", "9.0"), pairs).rows == outputs


def test_tables_that_no_look_up_is_for():
    with pytest.raises(
        ValueError,
        match=r"entries i and i \+ 8 of a table must have one sign, got \[0, 1, .*, -7\]",
    ):
        triton.bytes_of_table(
            jnp.zeros(4, jnp.uint32), (*range(8), *range(0, -8, -1)), Target("cuda", "9.0")
        )


@pytest.mark.parametrize("target", GPUS, ids=str)
@pytest.mark.parametrize(("tokens", "used"), [(1, 8), (3, 2)])
def test_experts_lower_to_triton(target, tokens, used):
    """Two launches, and one before each that quantises, whatever the number of pairs.

    A stack is read where it lies.
    """
    packings = [word_packed.packing(formats.get(name)) for name in ("Q4_K", "Q6_K")]
    stacks = [
        jax.eval_shape(
            lambda: jax.tree.map(
                lambda *a: jnp.stack(a), *[random_planes(jax.random.key(0), packing, *shape)] * 16
            )
        )
        for packing, shape in zip(packings, ((768, 64), (2048, 24)))
    ]
    x, experts = (
        jax.ShapeDtypeStruct((tokens, 2048), jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens * used,), jnp.int32),
    )

    def run(x, experts, gate, down):
        how, (first, second) = dict(mode="int16", target=target), packings
        (hidden,) = multiply(
            x, [Product((Weight(gate, first),) * 2, experts=experts)], dtype=jnp.bfloat16, **how
        )
        return multiply(
            hidden, [Product((Weight(down, second),), experts=experts)], dtype=jnp.float32, **how
        )

    text = lowered_to_triton(target, run, x, experts, *stacks)
    assert text.count("__gpu$xla.gpu.triton") == 4 and "dynamic_slice" not in text


def test_what_cannot_be_multiplied(matrix):
    weight, _ = matrix("Q4_0", 7, 3)
    call = functools.partial(
        multiply, products=[Product((weight,))], dtype=jnp.float32, target=TARGET
    )
    with pytest.raises(ValueError, match="activations are int16, int8, float, got 'int4'"):
        call(jnp.zeros((1, 96)), mode="int4")
    for count in (0, FEW_ROWS + 1):
        with pytest.raises(
            NotImplementedError, match=rf"{count} rows, the kernel takes 1 to {FEW_ROWS}"
        ):
            call(jnp.zeros((count, 96)), mode="int16")
