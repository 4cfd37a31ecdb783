"""Products that are refused before anything is launched."""

import functools

import jax.numpy as jnp
import pytest

from pallas_kernels.qmatmul import GEMV_ROWS, Product, multiply
from tests.pallas_kernels.conftest import TARGET
from tests.pallas_kernels.qmatmul.operands import stack_of

pytestmark = pytest.mark.core


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
    with pytest.raises(ValueError, match=r"tiles of rows \[1, 2\] are shared, .* no experts"):
        call([Product((one,))], shared=jnp.zeros((1, 2), jnp.int32))


def test_what_cannot_be_multiplied(matrix):
    weight, _ = matrix("Q4_0", 7, 3)
    call = functools.partial(
        multiply, products=[Product((weight,))], dtype=jnp.float32, target=TARGET
    )
    with pytest.raises(ValueError, match="activations are int16, int8, float, got 'int4'"):
        call(jnp.zeros((1, 96)), mode="int4")
    for count in (0, GEMV_ROWS + 1):
        with pytest.raises(
            NotImplementedError, match=rf"{count} rows, the kernel takes 1 to {GEMV_ROWS}"
        ):
            call(jnp.zeros((count, 96)), mode="int16")
