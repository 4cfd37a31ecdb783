"""Functions of registers that have a form for each GPU."""

import jax.numpy as jnp
import pytest

from pallas_kernels import triton
from pallas_kernels.targets import Target

pytestmark = pytest.mark.core


def test_tables_that_no_look_up_is_for():
    with pytest.raises(
        ValueError,
        match=r"entries i and i \+ 8 of a table must have one sign, got \[0, 1, .*, -7\]",
    ):
        triton.bytes_of_table(
            jnp.zeros(4, jnp.uint32), (*range(8), *range(0, -8, -1)), Target("cuda", "9.0")
        )
