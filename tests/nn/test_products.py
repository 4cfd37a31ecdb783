"""Products of modules, fused where a backend can: values, gradients, what is fused and why."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import targets
from pallas_kernels.activation_functions import SILU
from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics, record
from rocmforge_jax.nn import Embedding, Gate, Linear, RMSNorm, only_shapes, products
from rocmforge_jax.quant import QParam, QTensor
from tests.activated import activated

pytestmark = pytest.mark.core

D = 96
FLOAT32 = 1e-6
#: Relative error of a product whose activations have 15 bits.
INT16 = 1e-4


@pytest.fixture(params=["pallas", "cpp"])
def backend(request):
    """Makes one backend after the other available here: Pallas's interpreter, and C++."""
    if request.param == "cpp":
        request.getfixturevalue("in_cpp")
        yield "cpp"
    else:
        with targets.use(targets.INTERPRET):
            yield "pallas"


@pytest.fixture
def linear(normal):
    """Makes a packed Linear layer and its (in, out) values in float64."""

    def make(outputs, type_name="Q8_0", use_bias=False, seed=0, layout="groups", **numerics):
        rows = formats.quantize(normal(outputs, D, seed=seed) / np.float32(8), type_name)
        made = dict(use_bias=use_bias, numerics=Numerics(**numerics))
        layer = nnx.eval_shape(lambda: Linear(D, outputs, **made, rngs=nnx.Rngs(0)))
        layer.kernel = QParam(QTensor.from_bytes(rows, type_name, layout=layout, transposed=True))
        if use_bias:
            layer.bias = nnx.Param(jnp.asarray(normal(outputs, seed=seed + 1)))
        return layer, np.float64(formats.dequantize(rows, type_name)).T

    return make


@pytest.fixture
def norm(normal):
    norm = RMSNorm(D, epsilon=1e-3)
    norm.scale.set_value(jnp.asarray(1 + 0.1 * normal(D, seed=9)))
    return norm


def normed(x, norm):
    x = np.float64(x)
    scale = np.float64(norm.scale.get_value())
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + norm.epsilon) * scale


def decided(call):
    """Returns the result of a call and the (operation, backend, reason) of each decision."""
    with record() as decisions:
        result = call()
    of_each = [(d.operation.name, d.choice.name, d.choice.reason) for d in decisions]
    return result, of_each


def test_several_products_after_a_norm_are_one_call(backend, linear, norm, normal, distance):
    (q, q64), (k, k64) = linear(7, "Q4_0", use_bias=True), linear(9, "Q5_1", seed=1)
    (gate, gate64), (up, up64) = linear(5, seed=2), linear(5, seed=3)
    x = normal(2, 1, D)
    wanted = [q, k, Gate(gate, up)]
    outputs, decisions = decided(lambda: products(x, wanted, norm=norm))
    ((operation, name, reason),) = decisions
    assert (operation, name) == ("products", backend)
    assert reason.startswith("norm and 4 products with silu in one")
    h = normed(x, norm)
    linear_gate = h @ gate64
    truths = [
        h @ q64 + np.float64(q.bias.get_value()),
        h @ k64,
        linear_gate / (1 + np.exp(-linear_gate)) * (h @ up64),
    ]
    for y, truth in zip(outputs, truths, strict=True):
        assert y.shape == truth.shape and distance(y, truth) < 2 * INT16


def test_a_residual_is_added_to_the_only_output(backend, linear, normal, distance):
    layer, dense = linear(D, "Q4_0", use_bias=True)
    x, residual = normal(1, 2, D), normal(1, 2, D, seed=1)
    (y,), decisions = decided(lambda: products(x, [layer], residual=residual))
    assert len(decisions) == 1
    truth = np.float64(x) @ dense + np.float64(layer.bias.get_value()) + residual
    assert distance(y, truth) < INT16


def test_an_embedding_is_the_head_of_a_tied_model(backend, linear, normal, distance):
    layer, dense = linear(50, "Q4_0")
    table = nnx.eval_shape(lambda: Embedding(50, D, rngs=nnx.Rngs(0)))
    table.embedding = QParam(layer.kernel.get_value().T)
    x = jnp.asarray(normal(2, D), jnp.bfloat16)
    (y,), decisions = decided(lambda: products(x, [table], dtype=jnp.float32))
    assert [name for _, name, _ in decisions] == [backend] and y.dtype == jnp.float32
    assert distance(y, np.float64(x) @ dense) < INT16


def test_gradients_are_those_of_plain_xla(backend, linear, norm, normal, distance):
    operands = jnp.asarray(normal(2, 1, D)), norm.scale.get_value(), normal(7), normal(2, 1, 9)

    def several(backend, x, scale, bias, residual):
        mode = "float" if backend == "pallas" else "int16"
        make = functools.partial(linear, backend=backend, activations=mode)
        first, second = make(7, "Q4_0", use_bias=True)[0], make(9, seed=1)[0]
        gate, up = make(5, "Q5_1", seed=2)[0], make(5, seed=3)[0]
        first.bias.set_value(bias)
        of_x = RMSNorm(D, epsilon=1e-3)
        of_x.scale.set_value(scale)
        outputs = products(x, [first, Gate(gate, up)], norm=of_x)
        return outputs + products(x, [second], residual=residual)

    def with_gradients(name):
        y, transpose = jax.vjp(functools.partial(several, name), *operands)
        return jax.tree.leaves((y, transpose([jnp.ones_like(one) for one in y])))

    found, exact = with_gradients(backend), with_gradients("xla")
    allowed = 3 * FLOAT32 if backend == "pallas" else 5 * INT16
    assert len(found) == 3 + 4
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == other.dtype and distance(one, np.float64(other)) < allowed


def test_cpp_is_one_custom_call(in_cpp, linear, norm, normal):
    layers = [linear(7, "Q4_0")[0], Gate(linear(5, seed=2)[0], linear(5, seed=3)[0])]
    text = jax.jit(lambda x: products(x, layers, norm=norm)).lower(normal(3, D)).as_text()
    assert text.count("custom_call @rocmforge_multiply") == 1


class Doubled(RMSNorm):
    """A norm of a user's own."""

    def __call__(self, x):
        return 2 * super().__call__(x)


def unfused(case, linear, norm):
    """Returns (modules, norm, rows, what the reason names) of a case that cannot be fused."""
    layer, _ = linear(D, "Q4_0")
    lora = nnx.LoRA(D, 4, D, base_module=linear(D, "Q4_0", seed=1)[0], rngs=nnx.Rngs(0))
    dense = Linear(D, D, rngs=nnx.Rngs(0))
    transposed = nnx.eval_shape(lambda: Linear(D, D, rngs=nnx.Rngs(0)))
    transposed.kernel = QParam(layer.kernel.get_value().T)
    return {
        "a user's layer": ([layer, lora], norm, 2, "a layer is a LoRA"),
        "a user's norm": ([layer], Doubled(D, epsilon=1e-3), 2, "the norm is a Doubled"),
        "a dense weight": ([layer, dense], norm, 2, "a weight is not packed"),
        "a weight as it is stored": ([transposed, layer], norm, 2, "seen as it is stored"),
        "two numerics": (
            [layer, linear(D, activations="int8")[0]],
            norm,
            2,
            "differ in their numerics",
        ),
        "another layout": ([linear(D, layout="rows")[0]], norm, 2, "lie in rows"),
        "no row": ([layer], norm, 0, "row"),
    }[case]


@pytest.mark.parametrize(
    "case",
    [
        "a user's layer",
        "a user's norm",
        "a dense weight",
        "a weight as it is stored",
        "two numerics",
        "another layout",
        "no row",
    ],
)
def test_what_cannot_be_fused_is_computed_one_by_one_with_its_reason(
    case, backend, linear, norm, normal, distance
):
    modules, of_x, rows, why = unfused(case, linear, norm)
    x = jnp.asarray(normal(rows, D))
    outputs, (first, *others) = decided(lambda: products(x, modules, norm=of_x))
    assert first[:2] == ("products", "xla") and why in first[2]
    assert others  # each product has a choice of its own
    for y, module in zip(outputs, modules, strict=True):
        h = of_x(x)
        expected = module(h)
        assert y.shape == expected.shape
        assert not rows or distance(y, np.float64(expected)) < 2e-2  # int8 activations


def test_many_rows_are_not_fused_on_a_gpu(linear, norm, normal, distance):
    layer, dense = linear(D, "Q4_0")
    x, residual = normal(20, D), normal(20, D, seed=1)
    with targets.use(targets.INTERPRET):
        (y,), decisions = decided(lambda: products(x, [layer], norm=norm, residual=residual))
    assert [d[:2] for d in decisions] == [("products", "xla"), ("matmul", "pallas")]
    assert "20 rows, the fused kernels take 1 to 16" in decisions[0][2]
    assert distance(y, normed(x, norm) @ dense + residual) < FLOAT32


@pytest.mark.parametrize("normed_first", [True, False])
def test_tens_of_narrow_rows_share_a_launch_on_the_matrix_units(
    normed_first, linear, norm, normal, distance
):
    """From 4 rows of bfloat16 on; a product with a gate, and one without."""
    (gate, gate_dense), (up, up_dense) = linear(48, "Q4_0"), linear(48, "Q8_0")
    (layer, dense), x = linear(21, "Q4_0"), jnp.asarray(normal(20, D), jnp.bfloat16)
    given = norm if normed_first else None
    with targets.use(targets.INTERPRET):
        (gated, y), decisions = decided(lambda: products(x, [Gate(gate, up), layer], norm=given))
    ((*_, how),) = decisions
    assert "3 products" in how and "on the matrix units" in how
    rows = normed(np.float64(x), norm) if normed_first else np.float64(x)
    assert distance(y, rows @ dense) < 1e-2
    assert distance(gated, activated(SILU, rows @ gate_dense, rows @ up_dense)) < 2e-2


def test_a_backend_that_is_demanded(linear, normal):
    x = normal(2, D)
    with targets.use(targets.INTERPRET):
        _, decisions = decided(lambda: products(x, [linear(7, backend="xla")[0]]))
        assert [name for _, name, _ in decisions] == ["xla", "xla"]
        _, decisions = decided(lambda: products(x, [linear(7, backend="pallas")[0]]))
        assert [name for _, name, _ in decisions] == ["pallas"]
        with pytest.raises(NotImplementedError, match="matmul: pallas: .* lie in rows"):
            products(x, [linear(7, backend="pallas", layout="rows")[0]])


def test_a_residual_needs_one_module(linear, normal):
    layers = [linear(D)[0], linear(D)[0]]
    with pytest.raises(ValueError, match="one module, got 2"):
        products(normal(2, D), layers, residual=normal(2, D))
    assert products(normal(2, D), []) == []


def test_a_norm_without_a_scale_is_not_fused():
    """Kernels read the scale of a norm; without one the products are computed one by one."""
    with only_shapes():
        norm = RMSNorm(64, epsilon=1e-5, use_scale=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)
    layer = Linear(64, 5, rngs=nnx.Rngs(0))
    with record() as decisions:
        (y,) = products(x, [layer], norm=norm)
    assert decisions[0].choice.name == "xla"
    x64 = np.asarray(x, np.float64)
    normed = x64 / np.sqrt((x64 * x64).mean(-1, keepdims=True) + 1e-5)
    expected = normed @ np.asarray(layer.kernel.get_value(), np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
