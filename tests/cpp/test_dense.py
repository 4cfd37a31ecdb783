"""Products with dense weights in C++ against float64, with every set of instructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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


def operands(M, K, N, dtype, transposed, normal):
    weight = jnp.asarray(normal(*((N, K) if transposed else (K, N)), seed=1)).astype(dtype)
    return normal(M, K), weight


def product_in_64(x, weight, transposed=False):
    """The product in float64."""
    weight = np.float64(weight)
    return np.float64(x) @ (weight.T if transposed else weight)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", dense.MOST_ROWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_product_is_its_definition(size, dtype, transposed, instructions, normal, distance):
    x, weight = operands(*size, dtype, transposed, normal)
    found = jax.jit(dense.multiply, static_argnames="transposed")(x, weight, transposed=transposed)
    assert found.dtype == jnp.float32 and found.shape == (size[0], size[2])
    assert distance(found, product_in_64(x, weight, transposed)) < EXACT


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_a_token_gets_the_same_result_with_other_tokens(transposed, instructions, normal):
    """Few rows are computed alike, whatever their number; so are many, in slabs of any size."""
    x, weight = operands(80, 700, 900, "float16", transposed, normal)
    for most, numbers in ((8, range(1, 8)), (80, (9, 15, 31, 66, 68, 70))):
        all_ = dense.multiply(x[:most], weight, transposed=transposed)
        for M in numbers:
            some = dense.multiply(x[:M], weight, transposed=transposed)
            np.testing.assert_array_equal(some, all_[:M])


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
def test_matmul_takes_cpp_with_the_derivatives_of_xla(transposed, dtype, normal, distance):
    x, weight = operands(4, 60, 50, dtype, transposed, normal)
    x = x.reshape(2, 2, 60)

    def loss(x, weight, backend):
        y = quant.matmul(x, weight, transposed=transposed, backend=backend)
        return (jnp.sin(y) ** 2).sum()

    values = [jax.value_and_grad(loss, (0, 1))(x, weight, backend) for backend in (None, "xla")]
    for found, exact in zip(*map(jax.tree.leaves, values), strict=True):
        # Gradients have the dtype of their operands: sums on either side of a rounding boundary.
        most = 1e-5 if found.dtype == jnp.float32 else float(jnp.finfo(found.dtype).eps) / 8
        assert found.dtype == exact.dtype and distance(found, np.float64(exact)) < most
    with record() as decisions:
        y = quant.matmul(x, weight, transposed=transposed)
    assert y.shape == (2, 2, 50) and [d.choice.name for d in decisions] == ["cpp"]
    assert f"dense weight in {dtype}" in decisions[0].choice.reason


@pytest.mark.usefixtures("in_cpp")
def test_the_head_of_an_embedding_is_not_copied(normal, optimised, distance):
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
    assert distance(compiled(state, x), np.float64(x) @ np.float64(table).T) < EXACT


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


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shapes", [((0, 64), (64, 48)), ((2, 0, 64), (64, 48)), ((3, 0), (0, 48))])
def test_products_of_nothing_are_empty_or_zero(shapes, dtype):
    x, weight = (jnp.zeros(shape) for shape in shapes)
    for backend in (None, "xla"):
        found = quant.matmul(x, weight.astype(dtype), backend=backend)
        np.testing.assert_array_equal(found, np.zeros((*x.shape[:-1], 48)))
    assert quant.matmul(jnp.ones((3, 64)), jnp.ones((64, 0), dtype)).shape == (3, 0)


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_mapped(in_axes, dtype, normal, distance):
    """Over rows of x alone, it is one product; with many rows of float32, XLA's."""
    xs, weights = normal(6, 3, 50), jnp.asarray(normal(6, 50, 40)).astype(dtype)
    x, weight = (a if axis == 0 else a[0] for a, axis in zip((xs, weights), in_axes))
    found = jax.jit(jax.vmap(quant.matmul, in_axes))(x, weight)
    exact = np.float64(x) @ np.float64(weight)
    assert found.shape == (6, 3, 40) and distance(found, exact) < EXACT
    calls = str(jax.make_jaxpr(jax.vmap(quant.matmul, in_axes))(x, weight)).count("ffi_call[")
    assert calls == (in_axes == (0, None) and dtype == "bfloat16")


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_xla_divides_products_among_devices(kind, normal, distance):
    """Inside of `shard_map`, and on a mesh with explicit axes, also with gradients."""
    mesh, over_rows = jax.make_mesh((1,), ("d",), (kind,)), PartitionSpec("d", None)
    specs = over_rows, PartitionSpec(None, None)
    x, weight = operands(4, 60, 50, "float16", False, normal)
    exact = product_in_64(x, weight)
    gradient = 2 * exact @ np.float64(weight).T
    products = [jax.shard_map(quant.matmul, mesh=mesh, in_specs=specs, out_specs=over_rows)]
    if kind == AxisType.Explicit:
        products.append(quant.matmul)
    with record() as decisions, jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((x, weight), specs)]
        for product in products:
            y = product(*placed)
            assert y.sharding.spec[0] == "d" and distance(y, exact) < EXACT
            slope = jax.jit(jax.grad(lambda x, w, f=product: (f(x, w) ** 2).sum()))
            assert distance(slope(*placed), gradient) < EXACT
    assert {d.choice.name for d in decisions} == {"xla"}


@pytest.mark.usefixtures("in_cpp")
@pytest.mark.parametrize("transposed", [False, True])
def test_narrow_rows_do_not_round_a_weight(transposed, normal):
    """Whoever computes it: C++ takes 8 rows of a weight in float32, XLA takes 9."""
    x, weight = operands(9, 512, 64, jnp.float32, transposed, normal)
    x = jnp.asarray(x, jnp.bfloat16)
    exact = product_in_64(np.asarray(x, np.float32), weight, transposed)
    for rows in (8, 9):
        found = quant.matmul(x[:rows], weight, transposed=transposed, dtype=jnp.float32)
        assert np.linalg.norm(found - exact[:rows]) < EXACT * np.linalg.norm(exact[:rows])
