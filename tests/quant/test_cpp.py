"""Products with packed weights in C++: what they compute, and what happens where they cannot."""

import functools
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.backends import Numerics, cpp
from rocmforge_jax.cpp import build, library
from rocmforge_jax.quant import QTensor, default_layout, dequantize, expert_matmul, matmul

pytestmark = pytest.mark.core
#: Relative error of a product of random numbers, as in `matmul`'s docstring.
ERRORS = {"int16": 1e-4, "int8": 1.2e-2}
FLOAT32 = 1e-6


@pytest.mark.parametrize("mode", ERRORS)
@pytest.mark.parametrize("count", [1, 3, 33])
def test_any_number_of_rows(count, mode, made, in_cpp, normal, distance):
    for name in ("Q4_0", "Q5_1", "Q6_K"):
        w, dense = made(name, 37, 6 if name != "Q6_K" else 2)
        x = normal(count, len(dense))
        y = jax.jit(functools.partial(matmul, activations=mode))(x, w)
        assert FLOAT32 < distance(y, np.float64(x) @ dense) < ERRORS[mode]


def test_leading_axes_narrow_numbers_and_vmap(made, in_cpp, normal, distance):
    w, dense = made("Q8_0", 37, 3)
    x = jnp.asarray(normal(2, 1, 3, 96), jnp.bfloat16)
    truth = np.asarray(x).astype(np.float64) @ dense
    y = matmul(x, w, dtype=jnp.float32, backend="cpp")
    assert y.shape == (2, 1, 3, 37) and distance(y, truth) < ERRORS["int16"]
    assert matmul(x, w).dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.vmap(lambda x: matmul(x, w, dtype=jnp.float32))(x), y)


def test_one_expert_of_a_stack(packed, in_cpp, normal, distance):
    rows, values = packed("Q4_0", 21, 3)
    stack = QTensor.from_bytes(rows.reshape(3, 7, -1), "Q4_0", layout="groups", transposed=True)
    x = normal(2, 96)
    y = jax.jit(functools.partial(expert_matmul, backend="cpp"))(x, stack, jnp.int32(2))
    assert distance(y, np.float64(x) @ np.float64(values[14:].T)) < ERRORS["int16"]


@pytest.mark.parametrize("count", [3, 20])
def test_the_gradient_is_plain_xla_s(count, made, in_cpp, normal):
    w, _ = made("Q5_1", 37, 3)
    x, c = normal(count, 96), jnp.asarray(normal(count, 37))

    def gradient(backend):
        return jax.grad(lambda x: (matmul(x, w, backend=backend) * c).sum())(x)

    np.testing.assert_array_equal(gradient("cpp"), gradient("xla"))


@pytest.mark.parametrize(
    ("name", "numerics", "layout"),
    [
        ("Q4_0", Numerics(), "groups"),
        ("Q6_K", Numerics(), "groups"),
        ("Q4_0", Numerics(activations="int8"), "groups"),
        ("Q4_0", Numerics(backend="cpp"), "groups"),
        # Types that C++ does not know, modes that it does not have, and plain XLA.
        ("IQ3_S", Numerics(), "columns"),
        ("TQ1_0", Numerics(), "columns"),
        ("Q4_0", Numerics(activations="float"), "columns"),
        ("Q4_0", Numerics(backend="xla"), "columns"),
    ],
)
def test_the_layout_is_the_one_that_the_backend_reads(name, numerics, layout, in_cpp):
    assert default_layout(formats.get(name), numerics=numerics) == layout


def test_exact_products_are_plain_xla_s(made, in_cpp, normal):
    w, _ = made("Q4_0", 7, 3)
    x = normal(2, 96)
    exact = matmul(x, w, backend="xla")
    np.testing.assert_array_equal(matmul(x, w, activations="float"), exact)
    with pytest.raises(NotImplementedError, match="cpp: .* int16 or int8, not float"):
        matmul(x, w, activations="float", backend="cpp")


def test_what_it_cannot_do_is_refused_by_name_and_done_otherwise(
    made, packed, in_cpp, normal, distance
):
    w, dense = made("Q4_0", 96, 3)
    rows, _ = packed("Q4_0", 96, 3)
    columns = QTensor.from_bytes(rows, "Q4_0", layout="columns", transposed=True)
    cases = (
        (normal(2, 96), columns, dense, "cpp: Q4_0 planes lie in columns"),
        (normal(2, 96), w.T, dense.T, "cpp: the weight is seen as it is stored"),
        (normal(0, 96), w, dense, "cpp: there is no row to multiply"),
    )
    for x, weight, values, reason in cases:
        with pytest.raises(NotImplementedError, match=reason):
            matmul(x, weight, backend="cpp")
        y = matmul(x, weight)
        assert y.shape == (len(x), 96)
        assert len(x) == 0 or distance(y, np.float64(x) @ values) < FLOAT32


def test_a_backend_without_the_operation_leaves_it_to_plain_xla(made, in_cpp):
    w, dense = made("Q4_0", 7, 3)
    np.testing.assert_array_equal(dequantize(w, backend="cpp"), np.float32(dense))


def test_without_a_library_it_says_how_to_get_one(made, normal, monkeypatch, tmp_path):
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))
    w, _ = made("Q4_0", 7, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matmul(normal(1, 96), w)
    with pytest.raises(NotImplementedError, match="cpp: .* rocmforge-jax build-native"):
        matmul(normal(1, 96), w, backend="cpp")


@pytest.fixture
def untried(in_cpp, cpp_folder, tmp_path, monkeypatch):
    """Copies the library to a folder of its own, where nobody has tried it."""
    found = build.find(Path(cpp_folder))
    shutil.copy(found, tmp_path / found.name)
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))
    # JAX knows the same code already.
    monkeypatch.setattr(library, "load", lambda path: "these instructions")
    return tmp_path


def test_a_library_that_is_wrong_is_named_once_and_plain_xla_computes(
    made, untried, normal, monkeypatch
):
    multiply = cpp.products.multiply
    monkeypatch.setattr(
        cpp.products, "multiply", lambda *a, **k: [1.001 * y for y in multiply(*a, **k)]
    )
    jax.clear_caches()
    w, _ = made("Q4_0", 7, 3)
    x = normal(1, 96)
    message = "int16 activations is wrong on this processor .* 1.0e-03, allowed 1e-04"
    with pytest.warns(UserWarning, match=message) as warned:
        y = matmul(x, w)
    assert len(warned) == 1 and "rocmforge-jax build-native" in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(y, matmul(x, w, backend="xla"))
        assert default_layout(formats.get("Q4_0")) == "columns"
        with pytest.raises(NotImplementedError, match=message):
            matmul(x, w, backend="cpp")
    assert not list(untried.glob("*.passed"))
    jax.clear_caches()


def test_what_passed_is_remembered_beside_the_library(made, untried, normal):
    matmul(normal(1, 96), made("Q4_0", 7, 3)[0])
    matmul(normal(1, 96), made("Q5_0", 7, 3)[0], activations="int8")
    (file,) = untried.glob("*-these-instructions.passed")
    first, second = file.read_text().splitlines()
    assert "bits=4" in first and "int16" in first and "bits=5" in second and "int8" in second


def test_a_library_that_does_not_load_is_refused_with_the_reason(
    made, untried, normal, monkeypatch
):
    def broken(path):
        raise OSError("invalid ELF header")

    monkeypatch.setattr(library, "load", broken)
    cpp._load.cache_clear()
    w, x = made("Q4_0", 7, 3)[0], normal(1, 96)
    with pytest.warns(UserWarning, match="does not load: OSError: invalid ELF header"):
        y = matmul(x, w)
    np.testing.assert_array_equal(y, matmul(x, w, backend="xla"))
    with pytest.raises(NotImplementedError, match="does not load: OSError: invalid ELF header"):
        matmul(x, w, backend="cpp")


def test_a_library_that_another_process_builds_is_found(in_cpp, cpp_folder, tmp_path, monkeypatch):
    """Also where the folder is named relative to the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "libraries").mkdir()
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", "libraries")
    assert cpp.find() is None
    built = build.find(Path(cpp_folder))
    shutil.copy(built, tmp_path / "libraries" / built.name)
    assert cpp.find() == tmp_path / "libraries" / built.name
