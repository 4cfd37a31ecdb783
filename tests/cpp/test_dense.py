"""Products with dense weights in C++ against float64, with every set of instructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import quant
from rocmforge_jax.backends import BackendError, record
from rocmforge_jax.cpp import dense
from rocmforge_jax.nn import Embedding
from tests.cpp.conftest import NEEDS_CPP

pytestmark = [NEEDS_CPP, pytest.mark.core]

#: Relative L2 error of sums in float32 over up to 5000 numbers.
EXACT = 1e-6
#: M, K, N: few and many rows, sizes that fill no vector, no tile and no part, and single numbers.
SIZES = [
    (1, 5000, 130),
    (3, 77, 4500),
    (8, 640, 33),
    (9, 640, 33),
    (70, 129, 515),
    (300, 200, 1030),
    (1, 1, 1),
    (11, 3, 2),
]


def relative(found, exact):
    return np.linalg.norm(np.float64(found) - exact) / np.linalg.norm(exact)


def operands(M, K, N, dtype, transposed, normal):
    weight = jnp.asarray(normal(*((N, K) if transposed else (K, N)), seed=1)).astype(dtype)
    return normal(M, K), weight


def product(x, weight, transposed):
    """The product in float64."""
    weight = np.float64(weight)
    return np.float64(x) @ (weight.T if transposed else weight)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", dense.MOST_ROWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_its_definition(size, dtype, transposed, instructions, normal):
    x, weight = operands(*size, dtype, transposed, normal)
    found = jax.jit(dense.multiply, static_argnames="transposed")(x, weight, transposed=transposed)
    assert found.dtype == jnp.float32 and found.shape == (size[0], size[2])
    assert relative(found, product(x, weight, transposed)) < EXACT


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_a_token_gets_the_same_result_with_other_tokens(transposed, instructions, normal):
    """Few rows are computed alike, whatever their number; so are many."""
    x, weight = operands(80, 700, 900, "float16", transposed, normal)
    for few, more in ((1, 3), (9, 80)):
        one, all_ = (dense.multiply(x[:M], weight, transposed=transposed) for M in (few, more))
        np.testing.assert_array_equal(one, all_[:few])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_at_the_ends_of_the_range(dtype):
    """They are exact, except subnormal numbers of float32, which XLA's threads take for zeros."""
    about = jnp.finfo(dtype)
    numbers = [about.max, about.tiny, -0.0, np.inf, -np.inf, np.nan]
    if dtype == "float16":
        numbers.append(about.smallest_subnormal)
    weight = jnp.array([numbers], dtype)
    for M in (1, 20):
        for transposed in (False, True):
            turned = weight.T if transposed else weight
            found = dense.multiply(jnp.ones((M, 1)), turned, transposed=transposed)
            np.testing.assert_array_equal(found, np.float32(weight).repeat(M, 0))


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("dtype", dense.MOST_ROWS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_matmul_takes_cpp_with_the_derivatives_of_xla(transposed, dtype, normal):
    x, weight = operands(4, 60, 50, dtype, transposed, normal)
    x = x.reshape(2, 2, 60)

    def loss(x, weight, backend):
        y = quant.matmul(x, weight, transposed=transposed, backend=backend)
        return (jnp.sin(y) ** 2).sum()

    values = [jax.value_and_grad(loss, (0, 1))(x, weight, backend) for backend in (None, "xla")]
    for found, exact in zip(*map(jax.tree.leaves, values), strict=True):
        # Gradients have the dtype of their operands: sums on either side of a rounding boundary.
        most = 1e-5 if found.dtype == jnp.float32 else float(jnp.finfo(found.dtype).eps) / 8
        assert found.dtype == exact.dtype and relative(found, np.float64(exact)) < most
    with record() as decisions:
        y = quant.matmul(x, weight, transposed=transposed)
    assert y.shape == (2, 2, 50) and [d.choice.name for d in decisions] == ["cpp"]
    assert f"dense weight in {dtype}" in decisions[0].choice.reason


@pytest.mark.usefixtures("in_cpp")
def test_the_head_of_an_embedding_is_not_copied(normal, optimised):
    """C++ reads the table as it is stored; XLA would make a transpose of it in each step."""
    layer = Embedding(500, 640, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    structure, state = nnx.split(layer)
    x = jnp.asarray(normal(2, 640))

    def logits(state, x):
        return nnx.merge(structure, state).attend(x)

    compiled, table = (
        jax.jit(logits).lower(state, x).compile(optimised),
        layer.embedding.get_value(),
    )
    assert compiled.memory_analysis().temp_size_in_bytes < table.nbytes // 4
    assert relative(compiled(state, x), np.float64(x) @ np.float64(table).T) < EXACT


@pytest.mark.usefixtures("in_cpp")
def test_xla_takes_what_it_computes_faster(normal):
    x, weight = operands(9, 60, 50, "float32", False, normal)
    with record() as decisions:
        quant.matmul(x, weight)
    assert [d.choice.name for d in decisions] == ["xla"]
    assert decisions[0].choice.reason == "the weight is not packed"


def test_without_the_library_plain_xla_computes(normal):
    x, weight = operands(2, 60, 50, "float16", False, normal)
    with record() as decisions:
        quant.matmul(x, weight)
    assert decisions[0].choice.name == "xla" and "not built" in decisions[0].choice.reason
    with pytest.raises(BackendError, match="build-native"):
        quant.matmul(x, weight, backend="cpp")


@pytest.mark.parametrize(
    "x, weight, transposed",
    [((2, 8), (9, 4), False), ((2, 8), (8, 4), True), ((8,), (8, 4), False), ((0, 8), (8, 4), 0)],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(x, weight, transposed):
    with pytest.raises(ValueError, match=r"x has shape .* the weight .*expected \[M, K\] and"):
        dense.multiply(jnp.ones(x), jnp.ones(weight), transposed=transposed)


def test_other_dtypes_are_refused():
    with pytest.raises(NotImplementedError, match="a dense weight in int8, not float32, float16"):
        dense.multiply(jnp.ones((1, 8)), jnp.ones((8, 4), jnp.int8))
