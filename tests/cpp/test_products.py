"""The products in C++ against float64, with every set of instructions that this processor has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activation_functions import SILU
from pallas_kernels.packing import GROUP, position_words
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax import formats
from rocmforge_jax.cpp import products
from rocmforge_jax.quant import word_packed
from tests.cpp.conftest import NEEDS_CPP
from tests.pallas_kernels.conftest import PACKED_TYPES

ERRORS = {"int16": 1e-4, "int8": 1.2e-2}
pytestmark = [NEEDS_CPP, pytest.mark.usefixtures("library")]


def random_planes(rng, packing, rows, count) -> dict[str, np.ndarray]:
    """Every bit pattern of the codes, scales of a sensible size. Rows of `count` groups."""

    def small(*shape):
        return rng.uniform(0.5e-3, 1.5e-3, shape).astype(np.float16)

    shapes = {
        "codes": (rows, packing.bits, count),
        "d": (rows, count // packing.span),
        "scale": (rows, packing.halves, count),
    }
    ranges = {"nibbles": (0, 256), "int8": (-32, 32), "e8m0": (116, 124), "e4m3": (0, 128)}
    planes = {}
    for name, dtype in packing.planes().items():
        if name == "codes":
            planes[name] = rng.integers(0, 2**32, shapes[name], np.uint32)
        elif name == "d":
            planes[name] = (
                small(*shapes[name])
                if dtype == "float16"
                else small(*shapes[name], 2).view(np.uint32)[..., 0]
            )
        elif dtype == "uint16":
            planes[name] = rng.integers(0, 64, (*shapes[name], 2), np.uint8).view(np.uint16)[..., 0]
        else:
            planes[name] = rng.integers(*ranges[packing.scale], shapes[name]).astype(dtype)
    return planes


def dense(packing, planes) -> np.ndarray:
    """The values of a matrix as `packing` defines them, float64 [N, K]."""
    words = position_words([planes["codes"][:, i] for i in range(packing.bits)], packing.bits)
    codes = np.stack(words, axis=-1).view(np.uint8).reshape(*words[0].shape, GROUP)
    codes = (
        codes.view(np.int8).astype(np.float64) if packing.bits == 8 else codes.astype(np.float64)
    )
    codes = (
        np.array(packing.table, np.float64)[codes.astype(int)] if packing.table else codes
    ) - packing.offset
    by_half = codes.reshape(*codes.shape[:2], packing.halves, -1)
    scale, minimum = _scale_and_minimum(packing, planes)
    return (
        by_half * np.moveaxis(scale, 1, 2)[..., None] + np.moveaxis(minimum, 1, 2)[..., None]
    ).reshape(len(codes), -1)


def _scale_and_minimum(packing, planes):
    """Each float64 [N, halves, groups]."""
    small = planes.get("scale")
    if packing.scale == "e8m0":
        return np.ldexp(1.0, small.astype(int) - 128), np.zeros(small.shape)
    if packing.scale == "e4m3":
        exponent, fraction = (small & 127).astype(int) >> 3, small & 7
        value = np.where(exponent > 0, np.ldexp(8.0 + fraction, exponent - 11), fraction * 2.0**-10)
        return np.where(small & 127 == 127, 0, value), np.zeros(small.shape)
    entries = np.repeat(planes["d"], packing.span, axis=1)[:, None]
    if not packing.minimum:
        d = entries.view(np.float16).astype(np.float64)
        return d * (1 if small is None else small.astype(np.float64)), np.zeros(entries.shape)
    d, m = np.moveaxis(np.ascontiguousarray(entries)[..., None].view(np.float16), -1, 0).astype(
        np.float64
    )
    if small is None:
        return d, m
    bits = 4 if packing.scale == "nibbles" else 8
    return d * (small & ((1 << bits) - 1)), -m * (small >> bits)


@functools.cache
def made(name, rows, inputs, seed=0):
    """A random weight and its values."""
    packing = word_packed.packing(formats.get(name))
    planes = random_planes(np.random.default_rng(seed), packing, rows, inputs // GROUP)
    return Weight({name: jnp.asarray(plane) for name, plane in planes.items()}, packing), dense(
        packing, planes
    )


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("mode", ERRORS)
@pytest.mark.parametrize("name", PACKED_TYPES)
def test_a_product(name, mode, instructions):
    """Rows and groups that fill no vector, rows of activations that fill no tile and no slab."""
    for rows, inputs, count in [
        (37, 1280, 1),
        (70, 5376, 1),
        (66, 768, 7),
        (66, 768, 19),
        (5, 1024, 70),
        (3, 256, 520),
    ]:
        weight, values = made(name, rows, inputs)
        x = drawn(1, count, inputs)
        (y,) = products.multiply(jnp.asarray(x), [Product((weight,))], mode=mode)
        exact = np.float64(x) @ values.T
        assert np.linalg.norm(y - exact) < ERRORS[mode] * np.linalg.norm(exact), (
            rows,
            inputs,
            count,
        )


@pytest.mark.parametrize("count", [3, 21])
def test_what_comes_before_and_after(count, instructions, distance):
    """An RMSNorm, SwiGLU, a bias, a residual; several products of one input."""
    gate, up, other = made("Q4_K", 70, 512), made("Q6_K", 70, 512, 1), made("Q8_0", 33, 512, 2)
    x, norm, bias, residual = drawn(3, count, 512), drawn(4, 512), drawn(5, 33), drawn(6, count, 33)
    wanted = [
        Product((gate[0], up[0]), activation=SILU),
        Product((other[0],), (jnp.asarray(bias),), jnp.asarray(residual)),
    ]
    first, second = products.multiply(
        jnp.asarray(x), wanted, mode="int16", norm=jnp.asarray(norm), epsilon=1e-5
    )
    normed = (
        np.float64(x)
        / np.sqrt((np.float64(x) ** 2).mean(axis=1, keepdims=True) + 1e-5)
        * np.float64(norm)
    )
    g, u = normed @ gate[1].T, normed @ up[1].T
    swiglu = g / (1 + np.exp(-g)) * u
    assert distance(first, swiglu) < ERRORS["int16"]
    exact = normed @ other[1].T + np.float64(bias) + np.float64(residual)
    assert distance(second, exact) < ERRORS["int16"]


@pytest.mark.parametrize("count", [1, 9])
def test_swiglu_far_from_zero(count, instructions, distance):
    """Where e^-x leaves the range of float32 at either end: each output, however small.

    The activations are whole numbers of their scale, which rounding leaves as they are.
    """
    weight, values = made("Q8_0", 37, 64)
    integers = np.random.default_rng(7).integers(-16256, 16257, (count, 64))
    integers[:, ::32] = 16256
    for size in (1e2, 1e4, 1e8):
        x = (size / 16256 * integers).astype(np.float32)
        (y,) = products.multiply(
            jnp.asarray(x), [Product((weight, weight), activation=SILU)], mode="int16"
        )
        g = np.float64(x) @ values.T
        exact = np.where(g > 0, g, g * np.exp(np.minimum(g, 0))) / (1 + np.exp(-np.abs(g))) * g
        assert np.abs(g).max() > 20 and (g > 0).any() and (g < 0).any()
        assert distance(y, exact) < ERRORS["int16"]
        certain = np.abs(g) > 1e-2 * np.abs(g).max()  # the sum of the others has cancelled
        np.testing.assert_allclose(
            np.asarray(y)[certain], exact[certain], rtol=1e-4, atol=1e-36 * (g**2).max()
        )


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(bad, instructions):
    """In its row; the other rows are as without it.

    SwiGLU, which has an exponential of its own, hides none.
    """
    weight, values = made("Q4_0", 37, 1280)
    x = drawn(8, 20, 1280)
    for count in (2, 20):
        poisoned = x[:count].copy()
        poisoned[1, 1000] = bad
        for product in (Product((weight,)), Product((weight, weight), activation=SILU)):
            (y,) = products.multiply(jnp.asarray(poisoned), [product], mode="int16")
            (clean,) = products.multiply(jnp.asarray(x[:count]), [product], mode="int16")
            assert np.isnan(y[1]).all()
            np.testing.assert_array_equal(np.delete(y, 1, axis=0), np.delete(clean, 1, axis=0))


def test_numbers_that_are_all_tiny_or_huge(instructions):
    weight, values = made("Q8_0", 5, 64)
    for size, count in [(1e-38, 1), (1e-38, 9), (0, 1), (1e30, 1), (1e30, 9)]:
        x = (size * drawn(9, count, 64)).astype(np.float32)
        (y,) = products.multiply(jnp.asarray(x), [Product((weight,))], mode="int16")
        exact = np.float64(x) @ values.T
        np.testing.assert_allclose(y, exact, rtol=0, atol=2e-4 * np.abs(exact).max() + 1e-32)


@pytest.mark.parametrize("name", PACKED_TYPES)
def test_the_largest_integers(name, instructions):
    """No sum within 16 or 32 bits overflows: all codes and all activations at either end of their
    range.
    """
    made_of = made(name, 4, 512)[0]
    for word in (0xFFFFFFFF, 0x80808080, 0x7F7F7F7F, 0):
        planes = {key: np.asarray(plane) for key, plane in made_of.planes.items()}
        planes["codes"] = np.full_like(planes["codes"], word)
        weight, values = (
            Weight({key: jnp.asarray(plane) for key, plane in planes.items()}, made_of.packing),
            dense(made_of.packing, planes),
        )
        for mode, count in (("int16", 1), ("int16", 9), ("int8", 1), ("int8", 9)):
            for x in (
                np.ones(512),
                -np.ones(512),
                np.where(np.arange(512) % 32, 16191 / 16256, -1),
            ):
                x = np.repeat(x[None].astype(np.float32), count, axis=0)
                (y,) = products.multiply(jnp.asarray(x), [Product((weight,))], mode=mode)
                exact = np.float64(x) @ values.T
                np.testing.assert_allclose(
                    y,
                    exact,
                    rtol=0,
                    atol=(1e-5 if mode == "int16" else 5e-3) * np.abs(values).sum(axis=1).max(),
                )


def test_rows_of_a_batch_are_as_one_by_one(instructions):
    """Whichever way they are multiplied: sums differ in their order only."""
    weight, values = made("Q5_1", 70, 5376)
    x = jnp.asarray(drawn(10, 33, 5376))
    (whole,) = products.multiply(x, [Product((weight,))], mode="int16")
    for m in (0, 15, 32):
        (one,) = products.multiply(x[m : m + 1], [Product((weight,))], mode="int16")
        np.testing.assert_allclose(whole[m], one[0], rtol=0, atol=1e-5 * np.abs(one).max())


def test_vmap():
    weight, _ = made("Q4_0", 37, 1280)
    x = jnp.asarray(drawn(11, 3, 2, 1280))

    def multiply(x):
        return products.multiply(x, [Product((weight,))], mode="int16")[0]

    np.testing.assert_array_equal(jax.vmap(multiply)(x), jnp.stack([multiply(one) for one in x]))


def test_a_mode_that_there_is_not():
    with pytest.raises(NotImplementedError, match="float activations; there are int16, int8"):
        products.multiply(jnp.ones((1, 64)), [Product((made("Q4_0", 8, 64)[0],))], mode="float")


WRONG = {
    r"x has shape \[64\]: expected \[M, K\]": lambda w: (jnp.ones(64), [Product((w,))]),
    r"x has shape \[0, 64\]: expected": lambda w: (jnp.ones((0, 64)), [Product((w,))]),
    r"x has shape \[1, 48\]: expected": lambda w: (jnp.ones((1, 48)), [Product((w,))]),
    r"codes is uint32\[8, 4, 2\]: expected uint32\[8, 4, 4\] for 8 rows of 128 inputs": lambda w: (
        jnp.ones((1, 128)),
        [Product((w,))],
    ),
    r"codes is uint32\[8, 4, 2\]: expected uint32\[6, 4, 2\]": lambda w: (
        jnp.ones((1, 64)),
        [Product((made("Q4_0", 6, 64)[0], w), activation=SILU)],
    ),
    r"d is float32\[8, 2\]: expected float16\[8, 2\]": lambda w: (
        jnp.ones((1, 64)),
        [Product((Weight(w.planes | {"d": jnp.ones((8, 2), jnp.float32)}, w.packing),))],
    ),
    "the plane d is missing, there are codes": lambda w: (
        jnp.ones((1, 64)),
        [Product((Weight({"codes": w.planes["codes"]}, w.packing),))],
    ),
    r"biases has shape \[7\]: expected \[8\]": lambda w: (
        jnp.ones((1, 64)),
        [Product((w,), (jnp.ones(7),))],
    ),
    r"residual has shape \[1, 8\]: expected \[2, 8\]": lambda w: (
        jnp.ones((2, 64)),
        [Product((w,), None, jnp.ones((1, 8)))],
    ),
    "a product has 3 weights: expected 1, or 2": lambda w: (
        jnp.ones((1, 64)),
        [Product((w, w, w))],
    ),
    "there is no product": lambda w: (jnp.ones((1, 64)), []),
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit(message):
    with pytest.raises(ValueError, match=message):
        products.multiply(*WRONG[message](made("Q4_0", 8, 64)[0]), mode="int16")


def test_a_norm_that_does_not_fit():
    with pytest.raises(
        ValueError, match=r"norm has shape \[32\], x has 64 inputs: expected \[64\]"
    ):
        products.multiply(
            jnp.ones((1, 64)), [Product((made("Q4_0", 8, 64)[0],))], mode="int16", norm=jnp.ones(32)
        )


def test_groups_that_share_scales_are_whole():
    weight = made("Q4_K", 8, 256)[0]
    with pytest.raises(ValueError, match="9 groups of a row share scales by 8: 288 inputs"):
        products.multiply(jnp.ones((1, 288)), [Product((weight,))], mode="int16")


def test_a_packing_without_code():
    weight, _ = made("Q4_0", 8, 64)
    with pytest.raises(NotImplementedError, match="no code for Packing.*halves=2"):
        packing = weight.packing.__class__(bits=4, halves=2)
        products.multiply(
            jnp.ones((1, 64)), [Product((Weight(weight.planes, packing),))], mode="int16"
        )
