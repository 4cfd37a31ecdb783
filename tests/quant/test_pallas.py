"""Products with packed weights in Pallas kernels, in the interpreter, and how they are chosen."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax.backends import pallas, record
from rocmforge_jax.quant import QTensor, dequantize, expert_matmul, matmul

pytestmark = pytest.mark.core

#: Relative error of activations in 15 bits, of the product of random numbers. The same as in
#: `matmul`'s docstring.
INT16 = 1e-4
FLOAT32 = 1e-6
DEVICE = targets.Target("interpret", "of this device")


def reasons(call):
    """Returns (backend, reason) of every operation that a call computes."""
    with record() as decisions:
        call()
    return [(decision.choice.name, decision.choice.reason) for decision in decisions]


@pytest.mark.parametrize(("mode", "error"), [("int16", INT16), ("float", FLOAT32)])
def test_a_product_of_few_rows(mode, error, made, interpreted, normal, distance):
    w, dense = made("Q5_0", 40, 3)
    x = normal(2, 96)
    with record() as decisions:
        y = matmul(x, w, activations=mode, backend="pallas")
    assert decisions[0].choice.reason == f"packed weight, {mode} activations, interpret"
    assert distance(y, np.float64(x) @ dense) < error
    assert distance(matmul(x, w, backend="xla"), np.float64(x) @ dense) < FLOAT32


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("count", [0, 17, 70])
def test_a_product_of_many_rows_dequantises_first(
    count, transposed, made, interpreted, normal, distance
):
    """So does one with the weight as it is stored, whatever the number of rows."""
    w, dense = made("Q4_0", 37, 3)
    w, dense = (w, dense) if transposed else (w.T, dense.T)
    x = normal(count, len(dense))
    with record() as decisions:
        y = matmul(x, w, backend="pallas")
    assert decisions[0].choice.reason == "dequantised, then XLA's product, interpret"
    assert y.shape == (count, dense.shape[1])
    assert count == 0 or distance(y, np.float64(x) @ dense) < FLOAT32


@pytest.mark.parametrize(
    ("rows", "dtype", "kernel"),
    [
        (0, "float32", "dequantize"),
        (1, "float32", "gemv"),
        (16, "float32", "gemv"),
        (17, "float32", "dequantize"),
        (3, "bfloat16", "gemv"),
        (4, "bfloat16", "skinny_gemm"),
        (64, "float16", "skinny_gemm"),
        (65, "float16", "dequantize"),
    ],
)
def test_the_kernel_follows_from_rows_and_dtype(rows, dtype, kernel):
    assert pallas.kernel_of_product(rows, dtype) == kernel


def test_narrow_rows_on_the_matrix_units(made, interpreted, normal, distance):
    w, dense = made("Q4_0", 37, 3)
    x = jnp.asarray(normal(5, 96), jnp.bfloat16)
    with record() as decisions:
        y = matmul(x, w, dtype=jnp.float32, backend="pallas")
    assert decisions[0].choice.reason == "packed weight, on the matrix units, interpret"
    # The weight is rounded to bfloat16, 8 bits.
    assert distance(y, np.asarray(x).astype(np.float64) @ dense) < 2e-3


def test_leading_axes_and_one_row_as_it_is_stored(made, interpreted, normal, distance):
    w, dense = made("Q4_0", 37, 3)
    x, g = normal(2, 1, 3, 96), normal(37)
    y = matmul(x, w, activations="float", backend="pallas")
    assert distance(y, np.float64(x) @ dense) < FLOAT32
    assert distance(matmul(g, w.T, backend="pallas"), np.float64(g) @ dense.T) < FLOAT32


def test_dequantize(made, interpreted):
    w, _ = made("Q5_K", 7, 1)
    for weight in (w, w.T):
        assert reasons(lambda weight=weight: dequantize(weight)) == [
            ("pallas", "one pass over the planes, interpret")
        ]
        exact = dequantize(weight, backend="xla")
        np.testing.assert_array_equal(dequantize(weight, backend="pallas"), exact)


def test_one_expert_of_a_stack(packed, interpreted, normal, distance):
    rows, values = packed("Q4_0", 21, 3)
    stack = QTensor.from_bytes(rows.reshape(3, 7, -1), "Q4_0", layout="groups", transposed=True)
    x = normal(2, 96)
    product = functools.partial(expert_matmul, activations="float", backend="pallas")
    y = jax.jit(product)(x, stack, jnp.int32(2))
    assert distance(y, np.float64(x) @ np.float64(values[14:].T)) < FLOAT32


def test_a_backend_that_is_demanded_refuses_what_it_cannot_do(packed, interpreted, normal):
    w = QTensor.from_bytes(packed("Q4_0", 7, 3)[0], "Q4_0", layout="rows", transposed=True)
    x = normal(1, 96)
    why = "Q4_0 planes lie in rows"
    for call in (lambda: matmul(x, w, backend="pallas"), lambda: dequantize(w, backend="pallas")):
        with pytest.raises(NotImplementedError, match=f"pallas: {why}"):
            call()
    (choice,) = reasons(lambda: matmul(x, w))
    assert choice[0] == "xla" and why in choice[1]
    np.testing.assert_array_equal(matmul(x, w), matmul(x, w, backend="xla"))


def test_without_a_gpu_there_are_no_kernels(made, normal):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has one")
    w, x = made("Q4_0", 7, 3)[0], normal(1, 96)
    for call in (lambda: matmul(x, w, backend="pallas"), lambda: dequantize(w, backend="pallas")):
        with pytest.raises(NotImplementedError, match="'pallas' needs a GPU; .* CPU"):
            call()
    np.testing.assert_array_equal(matmul(x, w), matmul(x, w, backend="xla"))


def test_unknown_activations_are_refused(made, interpreted, normal):
    with pytest.raises(ValueError, match="int16, int8, float, got 'int4'"):
        matmul(normal(1, 96), made("Q4_0", 7, 3)[0], activations="int4")


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Makes the interpreter the device, on which nothing has been tried yet."""
    monkeypatch.setattr(targets, "of_device", lambda device: DEVICE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rocmforge-jax" / "trials"


def traced(x, w, **how):
    """Computes matmul under jit, traced anew: jax keeps what it traced of a function."""
    return jax.jit(lambda x, w: matmul(x, w, **how))(x, w)


def test_a_kernel_passes_its_trial_even_while_something_is_traced(device, made, normal):
    w, _ = made("Q4_0", 7, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traced(normal(1, 96), w, backend="pallas")
    (file,) = device.iterdir()
    assert file.read_text().splitlines() == ["the kernel for Q4_0 and int16 activations"]


@pytest.mark.parametrize("broken", ["multiply", "dequantize"])
def test_a_broken_kernel_fails_its_trial_and_xla_computes(
    broken, device, made, normal, monkeypatch
):
    """Its reason is in the warning, in the choice, and in the refusal where it is demanded."""
    if broken == "multiply":
        multiply = pallas.multiply
        monkeypatch.setattr(
            pallas, "multiply", lambda *a, **k: [1.001 * y for y in multiply(*a, **k)]
        )
        message = "Q4_0 and int16 activations is wrong on .* 1.0e-03, allowed 1e-04"
    else:
        # The product is right and the values are not.
        values = pallas.dequantize_planes
        wrong = lambda *a, **k: values(*a, **k) + np.float32(1e-3)  # noqa: E731 one line says it
        monkeypatch.setattr(pallas, "dequantize_planes", wrong)
        message = "Q4_0 and int16 activations is wrong on .* inf, allowed 1e-04"
    jax.clear_caches()
    w, _ = made("Q4_0", 7, 3)
    x = normal(2, 96)
    with pytest.warns(UserWarning, match=message) as warned:
        y = traced(x, w)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotImplementedError, match=message):
            matmul(x, w, backend="pallas")
    np.testing.assert_array_equal(y, traced(x, w, backend="xla"))
    jax.clear_caches()


def test_other_targets_than_the_device_are_not_tried(
    made, interpreted, normal, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    matmul(normal(1, 96), made("Q4_0", 7, 3)[0], backend="pallas")
    assert not (tmp_path / "rocmforge-jax").exists()


def gradients(function, *operands):
    """Returns the value and the gradients of sum(function * c) for random c."""
    y, transpose = jax.vjp(function, *operands)
    c = jnp.asarray(np.random.default_rng(0).standard_normal(y.shape), y.dtype)
    return y, *transpose(c)


@pytest.mark.parametrize("count", [3, 20])
def test_the_gradient_of_matmul(count, made, interpreted, normal, distance):
    w, _ = made("Q5_1", 37, 3)
    x = normal(count, 96)
    (y, d_x), (plain_y, plain_d_x) = (
        gradients(functools.partial(matmul, weight=w, activations="float", backend=backend), x)
        for backend in ("pallas", "xla")
    )
    assert distance(y, np.float64(plain_y)) < FLOAT32
    assert distance(d_x, np.float64(plain_d_x)) < FLOAT32
