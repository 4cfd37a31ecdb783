"""validate_matmul_dims names the operand and both shapes."""

import re

import pytest

import rocmforge_jax
from rocmforge_jax.quant import validate_matmul_dims

pytestmark = pytest.mark.core

A, B, C = (128, 256), (256, 512), (128, 512)


@pytest.mark.parametrize("sequence", [tuple, list])
def test_fitting_shapes_pass(sequence):
    assert rocmforge_jax.validate_matmul_dims is validate_matmul_dims
    assert (
        validate_matmul_dims(sequence((128, 256, 512)), sequence(A), sequence(B), sequence(C))
        is None
    )
    validate_matmul_dims((1, 1, 1), (1, 1), (1, 1), (1, 1))


@pytest.mark.parametrize(("operand", "right"), [("A", A), ("B", B), ("C", C)])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda m, n: (m + 1, n),
        lambda m, n: (m, n - 1),
        lambda m, n: (n, m),
        lambda m, n: (-m, n),
        lambda m, n: (m, 0),
        lambda m, n: (m * n,),
        lambda m, n: (1, m, n),
        lambda m, n: (),
    ],
    ids=["rows", "columns", "transposed", "negative", "zero", "flat", "batched", "scalar"],
)
def test_a_wrong_operand_is_named_with_both_shapes(operand, right, wrong):
    shapes = {"A": A, "B": B, "C": C} | {operand: wrong(*right)}
    with pytest.raises(ValueError) as refusal:
        validate_matmul_dims((128, 256, 512), shapes["A"], shapes["B"], shapes["C"])
    assert (
        str(refusal.value)
        == f"{operand} shape mismatch: expected {list(right)}, got {list(shapes[operand])}"
    )


@pytest.mark.parametrize(("place", "name"), [(0, "m"), (1, "k"), (2, "n")])
@pytest.mark.parametrize("size", [0, -1, True, 2.0, "3", None])
def test_a_size_that_is_no_positive_integer_is_named(place, name, size):
    expected = [128, 256, 512]
    expected[place] = size
    with pytest.raises(
        ValueError, match=re.escape(f"{name} must be an integer of at least 1, got {size!r}")
    ):
        validate_matmul_dims(expected, A, B, C)


@pytest.mark.parametrize("sizes", [(), (128, 256), (128, 256, 512, 1)])
def test_other_than_three_sizes_are_refused(sizes):
    with pytest.raises(
        ValueError, match=re.escape(f"expected (m, k, n), got {len(sizes)} sizes: {list(sizes)}")
    ):
        validate_matmul_dims(sizes, A, B, C)


@pytest.mark.parametrize(
    ("operand", "m", "k", "n", "elements"),
    [("A", 2**32, 2**31, 1, 2**63), ("B", 1, 2**32, 2**32, 2**64), ("C", 2**40, 1, 2**40, 2**80)],
)
def test_a_product_of_sizes_beyond_63_bits_is_refused(operand, m, k, n, elements):
    with pytest.raises(
        ValueError,
        match=rf"{operand} is too large: .* is {elements} elements, the limit is 2\*\*63 - 1",
    ):
        validate_matmul_dims((m, k, n), (m, k), (k, n), (m, n))


def test_the_largest_operand_that_fits_passes():
    m = 2**63 // 7
    validate_matmul_dims((m, 7, 1), (m, 7), (7, 1), (m, 1))
