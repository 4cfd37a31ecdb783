"""The products in C++ as an implementation: what they compute, when they are used, and what happens
where they cannot be.
"""

import functools
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rocmforge_jax import formats
from rocmforge_jax.nn import Product, products
from rocmforge_jax.quant import QTensor, default_layout, dequantize, expert_matmul, matmul
from rocmforge_jax.quant import native as library

pytestmark = pytest.mark.core
#: Relative error of a product of random numbers, as in `matmul`'s docstring.
ERRORS = {"int16": 1e-4, "int8": 1.2e-2}
FLOAT32 = 1e-6


@pytest.fixture
def none_built(monkeypatch, tmp_path):
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))


@pytest.mark.parametrize("mode", ERRORS)
@pytest.mark.parametrize("count", [1, 3, 33])
def test_any_number_of_rows(count, mode, made, cpp, normal, distance):
    for name in ("Q4_0", "Q5_1", "Q6_K"):
        w, dense = made(name, 37, 6 if name != "Q6_K" else 2)
        x = normal(count, len(dense))
        assert (
            FLOAT32
            < distance(
                jax.jit(functools.partial(matmul, activations=mode))(x, w), np.float64(x) @ dense
            )
            < ERRORS[mode]
        )


def test_leading_axes_narrow_numbers_and_vmap(made, cpp, normal, distance):
    w, dense = made("Q8_0", 37, 3)
    x = jnp.asarray(normal(2, 1, 3, 96), jnp.bfloat16)
    truth = np.asarray(x).astype(np.float64) @ dense
    y = matmul(x, w, dtype=jnp.float32, implementation="native")
    assert y.shape == (2, 1, 3, 37) and distance(y, truth) < ERRORS["int16"]
    assert matmul(x, w).dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.vmap(lambda x: matmul(x, w, dtype=jnp.float32))(x), y)


def test_one_expert_of_a_stack(packed, cpp, normal, distance):
    rows, values = packed("Q4_0", 21, 3)
    stack, x = (
        QTensor.from_bytes(rows.reshape(3, 7, -1), "Q4_0", layout="groups", transposed=True),
        normal(2, 96),
    )
    y = jax.jit(functools.partial(expert_matmul, implementation="native"))(x, stack, jnp.int32(2))
    assert distance(y, np.float64(x) @ np.float64(values[14:].T)) < ERRORS["int16"]


@pytest.mark.parametrize("count", [3, 20])
def test_the_gradient_is_plain_xla_s(count, made, cpp, normal):
    w, _ = made("Q5_1", 37, 3)
    x, c = normal(count, 96), jnp.asarray(normal(count, 37))

    def gradient(how):
        return jax.grad(lambda x: (matmul(x, w, implementation=how) * c).sum())(x)

    np.testing.assert_array_equal(gradient("native"), gradient("xla"))


def test_several_products_and_their_gradients(made, cpp, normal, distance):
    """Several types with a bias, a residual, SwiGLU, after a norm: one call."""
    first, second, gate, up = (
        made(*of)[0] for of in (("Q4_0", 7, 3), ("Q8_0", 9, 3), ("Q5_1", 5, 3), ("Q4_0", 5, 3))
    )
    operands = normal(2, 1, 96), 1 + 0.1 * normal(96), normal(7), normal(2, 1, 9, seed=1)

    def several(how, x, scale, bias, residual):
        wanted = [Product(first, bias=bias), Product(second, residual=residual), Product(gate, up)]
        norm = SimpleNamespace(scale=SimpleNamespace(get_value=lambda: scale), epsilon=1e-5)
        return products(x, wanted, norm=norm, implementation=how)

    def with_gradients(how):
        y, transpose = jax.vjp(functools.partial(several, how), *operands)
        return jax.tree.leaves((y, transpose([jnp.ones_like(one) for one in y])))

    text = jax.jit(functools.partial(several, "native")).lower(*operands).as_text()
    assert text.count("custom_call @rocmforge_multiply") == 1
    for one, other in zip(with_gradients("native"), with_gradients("xla"), strict=True):
        assert one.dtype == other.dtype and distance(one, np.float64(other)) < 5 * ERRORS["int16"]


def test_layouts(cpp, monkeypatch):
    """Groups where C++ multiplies them; other types and modes keep the layout of plain XLA."""

    def layout(name, **how):
        return default_layout(formats.get(name), **how)

    assert [layout(name) for name in ("Q4_0", "Q6_K", "IQ3_S", "TQ1_0")] == [
        "groups",
        "groups",
        "columns",
        "columns",
    ]
    assert (
        layout("Q4_0", activations="int8") == "groups"
        and layout("Q4_0", activations="float") == "columns"
    )
    monkeypatch.setenv("ROCMFORGE_KERNELS", "xla")
    assert layout("Q4_0") == "columns"


def test_exact_products_are_plain_xla_s(made, cpp, normal):
    w, _ = made("Q4_0", 7, 3)
    x = normal(2, 96)
    np.testing.assert_array_equal(
        matmul(x, w, activations="float"), matmul(x, w, implementation="xla")
    )
    with pytest.raises(
        NotImplementedError,
        match="native: the C\\+\\+ products turn activations into int16 or int8, not float",
    ):
        matmul(x, w, activations="float", implementation="native")


def test_what_they_cannot_do_is_refused_by_name_and_done_otherwise(
    made, packed, cpp, normal, distance
):
    w, dense = made("Q4_0", 96, 3)
    columns = QTensor.from_bytes(
        packed("Q4_0", 96, 3)[0], "Q4_0", layout="columns", transposed=True
    )
    cases = (
        (
            normal(2, 96),
            columns,
            dense,
            "native: Q4_0 planes lie in columns, the C\\+\\+ products read groups",
        ),
        (
            normal(2, 96),
            w.T,
            dense.T,
            (
                "native: the weight is seen as it is stored, the C\\+\\+ products multiply with its"
                " transpose"
            ),
        ),
        (normal(0, 96), w, dense, "native: there is no row to multiply"),
    )
    for x, weight, values, reason in cases:
        with pytest.raises(NotImplementedError, match=reason):
            matmul(x, weight, implementation="native")
        with pytest.raises(NotImplementedError, match=reason):
            products(x, [Product(weight)], implementation="native")
        y = matmul(x, weight)
        assert len(x) == 0 and y.shape == (0, 96) or distance(y, np.float64(x) @ values) < FLOAT32


def test_the_environment_chooses(made, cpp, normal, monkeypatch):
    w, _ = made("Q4_0", 7, 3)

    def calls():
        return (
            jax.jit(lambda x, w: matmul(x, w))
            .lower(normal(1, 96), w)
            .as_text()
            .count("custom_call @rocmforge")
        )

    for choice, expected in (("", 1), ("auto", 1), ("native", 1), ("xla", 0)):
        monkeypatch.setenv("ROCMFORGE_KERNELS", choice)
        assert calls() == expected


def test_chosen_alone_it_leaves_what_it_has_not_to_plain_xla(made, cpp, monkeypatch):
    w, dense = made("Q4_0", 7, 3)
    monkeypatch.setenv("ROCMFORGE_KERNELS", "native")
    np.testing.assert_array_equal(dequantize(w), np.float32(dense))


def test_without_a_library_it_says_how_to_get_one(made, none_built, normal, monkeypatch):
    w, _ = made("Q4_0", 7, 3)
    reason = (
        r"native: the C\+\+ products are not built \(build it once with: rocmforge-jax"
        r" build-native\)"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matmul(normal(1, 96), w)
    with pytest.raises(NotImplementedError, match=reason):
        matmul(normal(1, 96), w, implementation="native")
    monkeypatch.setenv("ROCMFORGE_KERNELS", "native")
    for call in (matmul, lambda x, w: products(x, [Product(w)])):
        with pytest.raises(NotImplementedError, match=reason):
            call(normal(1, 96), w)


def copied(cpp_folder, tmp_path, monkeypatch):
    """The library in a folder of its own, where nobody has tried it."""
    found = library.build.find(Path(cpp_folder))
    shutil.copy(found, tmp_path / found.name)
    monkeypatch.setenv("ROCMFORGE_CPP_FOLDER", str(tmp_path))
    monkeypatch.setattr(
        library.cpp_library, "load", lambda path: "these instructions"
    )  # JAX knows the same code already
    return tmp_path / found.name


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda *of: 1.0, "has a relative error of 1.0e+00, allowed 1e-04"),
        (lambda *of: float("nan"), "has a relative error of nan, allowed 1e-04"),
        (lambda *of: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["wrong", "nan", "raises"],
)
def test_a_library_that_fails_is_named_once_and_xla_stands_in(
    error, said, made, cpp, cpp_folder, normal, tmp_path, monkeypatch
):
    path = copied(cpp_folder, tmp_path, monkeypatch)
    monkeypatch.setattr(library, "_error", error)
    w, _ = made("Q4_0", 7, 3)
    x = normal(1, 96)
    with pytest.warns(UserWarning, match=re.escape(said)) as warned:
        y = matmul(x, w)
    message = str(warned[0].message)
    assert len(warned) == 1 and path.name in message and "Plain XLA stands in" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(y, matmul(x, w, implementation="xla"))
        assert default_layout(formats.get("Q4_0")) == "columns"
        with pytest.raises(NotImplementedError, match=re.escape(said)):
            matmul(x, w, implementation="native")
    assert not list(tmp_path.glob("*.passed"))


def test_a_library_is_tried_once_for_a_processor(cpp, cpp_folder, tmp_path, monkeypatch):
    copied(cpp_folder, tmp_path, monkeypatch)
    tried = []
    monkeypatch.setattr(
        library, "_error", lambda packing, mode: tried.append((packing, mode)) or 0.0
    )
    assert library.usable() and len(tried) == len(set(tried)) == 2 * len(
        library.word_packed.packings()
    )
    assert [
        path.name.endswith("-these-instructions.passed") for path in tmp_path.glob("*.passed")
    ] == [True]
    library._loaded.cache_clear()
    assert library.usable() and len(tried) == 2 * len(library.word_packed.packings())


def test_the_trial_itself_passes_and_finds_a_wrong_product(cpp, monkeypatch):
    packing = library.groups.packing(formats.get("Q4_0"))
    assert library.usable() and library._error(packing, "int16") < ERRORS["int16"]
    multiply = library._multiply
    monkeypatch.setattr(library, "_multiply", lambda *of: [1.001 * y for y in multiply(*of)])
    assert library._error(packing, "int16") > ERRORS["int16"]
