"""Forward mode, reverse mode and second order, through packed products and attention."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import AttentionRule
from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics, linear
from rocmforge_jax.nn import KVState, RopeConfig, attend_to_new, rope_table
from rocmforge_jax.quant import QTensor, dequantize, matmul

pytestmark = pytest.mark.core
#: Relative errors of derivatives: of int16 activations, and of float32.
ERRORS = {"cpp": 1e-3, "xla": 1e-5}


@pytest.fixture
def backend(request):
    if request.param == "cpp":
        request.getfixturevalue("in_cpp")
    return request.param


@functools.partial(jax.jit, static_argnums=0)
def derivatives(f, x, v):
    """Returns a directional derivative, a gradient, and products with the Hessian in two ways."""
    gradient = jax.grad(f)
    return {
        "forward": jax.jvp(f, (x,), (v,))[1],
        "reverse": gradient(x),
        "forward over reverse": jax.jvp(gradient, (x,), (v,))[1],
        "reverse over reverse": jax.grad(lambda x: (gradient(x) * v).sum())(x),
    }


def compare(f, plain, x, v, error):
    found, expected = derivatives(f, x, v), derivatives(plain, x, v)
    for name in expected:
        distance = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert distance < error, (name, distance)


def matrix(normal, name, n, k, layout):
    rows = formats.quantize(normal(n, k), name)
    return QTensor.from_bytes(jnp.asarray(rows), name, layout=layout, transposed=True)


@pytest.mark.parametrize(
    ("backend", "layout"),
    [("cpp", "groups"), ("xla", "groups"), ("xla", "columns")],
    indirect=["backend"],
)
def test_products(backend, layout, normal):
    w = matrix(normal, "Q5_1", 37, 96, layout)
    dense = dequantize(w)
    x, v, c = (jnp.asarray(normal(*shape)) for shape in ((3, 96), (1, 96), (3, 37)))

    def loss(multiply, x):
        return (jnp.tanh(multiply(x)) * c).sum()

    packed = functools.partial(loss, lambda x: matmul(x, w, backend=backend))
    plain = functools.partial(loss, lambda x: jnp.matmul(x, dense, precision="highest"))
    compare(packed, plain, x, jnp.broadcast_to(v, x.shape), ERRORS[backend])
    by_row = jax.vmap(lambda x, c: jax.grad(lambda x: (matmul(x, w, backend=backend) * c).sum())(x))
    np.testing.assert_allclose(by_row(x, c), c @ dense.T, rtol=1e-4, atol=1e-4)
    jacobian = jax.jacfwd(lambda x: matmul(x, w, backend=backend))(x[0])
    np.testing.assert_allclose(jacobian, dense.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("backend", "tokens"), [("cpp", 1), ("xla", 1), ("cpp", 5)], indirect=["backend"]
)
def test_attention_to_new_tokens(backend, tokens, normal):
    """Through the rotation, the cache and, in C++, two calls."""
    N, K, H, S = 6, 2, 16, 40
    rope, rule = RopeConfig(H), AttentionRule(H**-0.5)
    k, v = (jnp.asarray(normal(2, tokens, K, H, seed=i)) for i in (1, 2))
    cache = KVState(jnp.asarray(normal(2, K, H, S)), jnp.asarray(normal(2, K, S, H)))
    starts = jnp.array([7, 12], jnp.int32)
    table = rope_table(starts[:, None] + jnp.arange(tokens, dtype=jnp.int32)[None], rope)
    x, d, c = (jnp.asarray(normal(2, tokens, N, H, seed=i)) for i in (3, 4, 5))

    def loss(backend, x):
        numerics = Numerics(backend=backend)
        new = x, k + x[:, :, :K], v * x[:, :, K : 2 * K], table, rope, cache, starts, rule
        out, after = attend_to_new(*new, numerics=numerics)
        return (out.array.reshape(c.shape) * c).sum() + (after.values**2).sum()

    # Plain XLA, differentiated as it stands, is the truth of C++; finite differences are that of
    # both.
    f = functools.partial(loss, backend)
    if backend == "cpp":
        compare(f, functools.partial(loss, "xla"), x, d, 1e-4)
    slope = (f(x + 1e-2 * d) - f(x - 1e-2 * d)) / 2e-2
    assert float(jax.jvp(f, (x,), (d,))[1]) == pytest.approx(float(slope), rel=1e-2)


def test_a_constant_of_a_linear_function_has_no_derivative():
    double = _Scaled()
    d_x, d_factor = jax.grad(lambda x, f: linear(double, x, [f]), argnums=(0, 1))(3.0, 2.0)
    assert (d_x, d_factor) == (2.0, 0.0)
    both = jax.vmap(lambda x, f: jax.grad(lambda x: linear(double, x, [f]))(x))
    np.testing.assert_array_equal(both(jnp.arange(3.0), jnp.arange(3.0)), [0, 1, 2])


class _Scaled:
    """x * factor, which is its own transpose."""

    def __call__(self, x, factor):
        return x * factor

    def transposed(self, dtype):
        return self


@pytest.mark.parametrize("layout", ["groups", "columns", "rows"])
def test_a_weight_that_is_closed_over_stays_packed(layout, normal, optimised):
    """XLA computes no dense weight while it compiles."""
    w, x = matrix(normal, "Q4_0", 128, 256, layout), jnp.asarray(normal(20, 256))
    program = jax.jit(jax.grad(lambda x: jnp.tanh(matmul(x, w, backend="xla")).sum()))
    text = program.lower(x).compile(optimised).as_text()
    constants = re.findall(r" (\w+)\[([\d,]+)\]\S* constant\(", text)
    large = {
        (kind, shape) for kind, shape in constants if np.prod(np.int64(shape.split(","))) > 999
    }
    assert large and not any(kind.startswith(("f32", "bf16")) for kind, _ in large)
