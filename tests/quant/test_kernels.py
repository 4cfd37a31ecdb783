"""The kernels as implementations: which one runs, what they compute in Pallas's interpreter, and
what happens where one fails.
"""

import functools
import re
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import targets
from rocmforge_jax.nn import Product, RMSNorm, products
from rocmforge_jax.quant import QTensor, dequantize, expert_matmul, kernels, matmul, trials

pytestmark = pytest.mark.core

#: Relative error of activations in 15 bits, of the product of random numbers. The same as in
#: `matmul`'s docstring.
INT16 = 1e-4
FLOAT32 = 1e-6
DEVICE = targets.Target("interpret", "of this device")


@pytest.fixture
def calls(monkeypatch):
    """What kernels were asked for, in order, by name."""
    calls = []
    for name in ("few_rows", "many_rows", "dequantize"):
        original = getattr(kernels, name)

        def spy(*args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(kernels, name, spy)
    return calls


@pytest.mark.parametrize(("mode", "error"), [("int16", INT16), ("float", FLOAT32)])
def test_a_product_of_few_rows(mode, error, made, interpreted, calls, normal, distance):
    w, dense = made("Q5_0", 40, 3)
    x = normal(2, 96)
    y = matmul(x, w, activations=mode, implementation="triton")
    assert calls == ["few_rows"]
    assert distance(y, np.float64(x) @ dense) < error
    assert distance(matmul(x, w, implementation="xla"), np.float64(x) @ dense) < FLOAT32
    assert calls == ["few_rows"]


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("count", [0, 17, 70])
def test_a_product_of_many_rows_dequantises_first(
    count, transposed, made, interpreted, calls, normal, distance
):
    """And one with the weight as it is stored, whatever the number of rows.

    The matrix product that follows is XLA's.
    """
    w, dense = made("Q4_0", 37, 3)
    w, dense = (w, dense) if transposed else (w.T, dense.T)
    x = normal(count, len(dense))
    y = matmul(x, w, implementation="triton")
    assert calls == ["dequantize"] and y.shape == (count, dense.shape[1])
    assert count == 0 or distance(y, np.float64(x) @ dense) < FLOAT32


def test_leading_axes_and_one_row_as_it_is_stored(made, interpreted, normal, distance):
    w, dense = made("Q4_0", 37, 3)
    x, g = normal(2, 1, 3, 96), normal(37)
    assert (
        distance(matmul(x, w, activations="float", implementation="triton"), np.float64(x) @ dense)
        < FLOAT32
    )
    assert distance(matmul(g, w.T, implementation="triton"), np.float64(g) @ dense.T) < FLOAT32


def test_dequantize(made, packed, interpreted, calls):
    w, _ = made("Q5_K", 7, 1)
    for weight in (w, w.T):
        np.testing.assert_array_equal(
            dequantize(weight, implementation="triton"), dequantize(weight, implementation="xla")
        )
    assert calls == ["dequantize"] * 2


def test_one_expert_of_a_stack(packed, interpreted, calls, normal, distance):
    rows, values = packed("Q4_0", 21, 3)
    stack = QTensor.from_bytes(rows.reshape(3, 7, -1), "Q4_0", layout="groups", transposed=True)
    x = normal(2, 96)
    product = functools.partial(expert_matmul, activations="float", implementation="triton")
    y = jax.jit(product)(x, stack, jnp.int32(2))
    assert calls == ["few_rows"]
    assert distance(y, np.float64(x) @ np.float64(values[14:].T)) < FLOAT32


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ["few_rows"]),
        ("", ["few_rows"]),
        ("auto", ["few_rows"]),
        ("triton", ["few_rows"]),
        ("xla", []),
    ],
)
def test_the_environment_chooses(choice, expected, made, interpreted, calls, normal, monkeypatch):
    monkeypatch.delenv("ROCMFORGE_KERNELS", raising=False)
    if choice is not None:
        monkeypatch.setenv("ROCMFORGE_KERNELS", choice)
    w, _ = made("Q4_0", 7, 3)
    matmul(normal(1, 96), w)
    assert calls == expected
    calls.clear()
    products(normal(1, 96), [Product(w)])
    assert calls == expected


def test_a_choice_that_is_none_is_refused(made, normal, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_KERNELS", "cuda")
    for call in (matmul, lambda x, w: dequantize(w), lambda x, w: products(x, [Product(w)])):
        with pytest.raises(
            ValueError, match="ROCMFORGE_KERNELS is one of auto, triton, native, xla, got 'cuda'"
        ):
            call(normal(1, 96), made("Q4_0", 7, 3)[0])


def test_kernels_alone_refuse_what_they_cannot_do(packed, interpreted, normal, monkeypatch):
    """By name or by the environment; where neither says so plain XLA does it."""
    w = QTensor.from_bytes(packed("Q4_0", 7, 3)[0], "Q4_0", layout="rows", transposed=True)
    x = normal(1, 96)
    plain = matmul(x, w)
    for call in (
        lambda: matmul(x, w, implementation="triton"),
        lambda: dequantize(w, implementation="triton"),
    ):
        with pytest.raises(
            NotImplementedError, match="triton: Q4_0 planes lie in rows, kernels read groups"
        ):
            call()
    monkeypatch.setenv("ROCMFORGE_KERNELS", "triton")
    for call in (lambda: matmul(x, w), lambda: products(x, [Product(w)])):
        with pytest.raises(
            NotImplementedError, match="triton: Q4_0 planes lie in rows, kernels read groups"
        ):
            call()
    np.testing.assert_array_equal(matmul(x, w, implementation="xla"), plain)


def test_without_a_gpu_there_are_no_kernels(made, normal):
    if jax.default_backend() != "cpu":
        pytest.skip("this machine has one")
    w, x = made("Q4_0", 7, 3)[0], normal(1, 96)
    for call in (
        lambda: matmul(x, w, implementation="triton"),
        lambda: dequantize(w, implementation="triton"),
        lambda: products(x, [Product(w)], implementation="triton"),
    ):
        with pytest.raises(
            NotImplementedError, match="triton: there are kernels for GPUs, this is a cpu"
        ):
            call()
    np.testing.assert_array_equal(matmul(x, w), matmul(x, w, implementation="xla"))


@pytest.mark.parametrize("call", [matmul, lambda x, w, **how: products(x, [Product(w)], **how)])
def test_unknown_activations_are_refused(call, made, interpreted, normal):
    with pytest.raises(ValueError, match="activations are one of int16, int8, float, got 'int4'"):
        call(normal(1, 96), made("Q4_0", 7, 3)[0], activations="int4")


@pytest.fixture
def device(monkeypatch, tmp_path):
    """A device that runs kernels, of which nothing has been found out yet. -> the folder where it
    is remembered.
    """
    monkeypatch.setattr(targets, "of_device", lambda device: DEVICE)
    monkeypatch.setattr(trials, "_findings", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rocmforge-jax" / "trials"


def traced(x, w, **how):
    """matmul under jit, traced anew: jax keeps what it traced of a function."""
    return jax.jit(lambda x, w: matmul(x, w, **how))(x, w)


def fail(*args):
    raise RuntimeError("ptxas died")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            fail,
            (
                "the kernel for Q4_0 and int16 activations does not run on {}: RuntimeError: ptxas"
                " died"
            ),
        ),
        (
            lambda *args: 1.0,
            (
                "the kernel for Q4_0 and int16 activations is wrong on {}: its relative error is"
                " 1.0e+00, allowed 1e-04"
            ),
        ),
        (
            lambda *args: float("nan"),
            (
                "the kernel for Q4_0 and int16 activations is wrong on {}: its relative error is"
                " nan, allowed 1e-04"
            ),
        ),
    ],
    ids=["raises", "wrong", "nan"],
)
def test_a_kernel_that_fails_is_named_once_and_xla_stands_in(
    error, message, device, made, calls, normal, monkeypatch
):
    monkeypatch.setattr(kernels, "_error", error)
    message = message.format(DEVICE)
    w, _ = made("Q4_0", 7, 3)
    x, norm = normal(2, 96), RMSNorm(96, epsilon=1e-5)
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        y = traced(x, w)
    assert len(warned) == 1 and str(warned[0].message).endswith("Plain XLA stands in.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, (fused,) = matmul(x, w), products(x, [Product(w)], norm=norm)
        np.testing.assert_array_equal(
            fused, products(x, [Product(w)], norm=norm, implementation="xla")[0]
        )
        with pytest.raises(NotImplementedError, match=re.escape(message)):
            matmul(x, w, implementation="triton")
    np.testing.assert_array_equal(y, traced(x, w, implementation="xla"))
    np.testing.assert_array_equal(again, matmul(x, w, implementation="xla"))
    assert not calls


def test_a_kernel_is_tried_once_for_each_type_and_mode_and_used_where_it_works(
    device, made, calls, normal, monkeypatch
):
    tried = []
    monkeypatch.setattr(
        kernels,
        "_error",
        lambda packing, mode, target: tried.append((packing.bits, mode, target)) or 0.0,
    )
    x, (four, _), (eight, _) = normal(1, 96), made("Q4_0", 7, 3), made("Q8_0", 7, 3)
    for weight, mode in (
        (four, "int16"),
        (eight, "int16"),
        (four, "int8"),
        (four, "int16"),
        (eight, "int16"),
    ):
        traced(x, weight, activations=mode)
    assert tried == [(4, "int16", DEVICE), (8, "int16", DEVICE), (4, "int8", DEVICE)]
    assert calls.count("few_rows") == 5


def test_the_trial_itself_passes_in_the_interpreter_and_fails_with_a_broken_kernel(
    device, made, normal, monkeypatch
):
    """On the real kernels, once while something else is being traced."""
    w, _ = made("Q4_0", 7, 3)
    traced(normal(1, 96), w)
    assert list(trials._findings.values()) == [None]
    few_rows = kernels._few_rows
    monkeypatch.setattr(kernels, "_few_rows", lambda *args: [1.001 * y for y in few_rows(*args)])
    forget(device)
    with pytest.warns(
        UserWarning,
        match=(
            "Q4_0 and int16 activations is wrong on .* its relative error is 1.0e-03, allowed 1e-04"
        ),
    ):
        traced(normal(1, 96), w)


def forget(folder):
    trials._findings.clear()
    for file in folder.iterdir():
        file.unlink()


def test_what_passed_is_remembered_for_programs_that_start_later(device, made, normal, monkeypatch):
    """Until the kernels' source, jax or the device is another, and where the folder can be written.

    What failed is tried again.
    """
    tried, error = [], {4: 0.0, 8: 1.0}
    monkeypatch.setattr(
        kernels,
        "_error",
        lambda packing, mode, target: tried.append(packing.bits) or error[packing.bits],
    )
    x, weights = normal(1, 96), [made(name, 7, 3)[0] for name in ("Q4_0", "Q8_0")]

    def start():
        """Which bits are tried by a program that starts now."""
        trials._findings.clear()
        tried.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for weight in weights:
                traced(x, weight)
        return list(tried)

    assert start() == [4, 8] and start() == [8]
    (file,) = device.iterdir()
    assert file.read_text().splitlines() == ["the kernel for Q4_0 and int16 activations"]
    monkeypatch.setattr(trials, "_key", lambda: "of another jax")
    assert start() == [4, 8] and start() == [8]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert start() == [4, 8] and start() == [4, 8]


def test_other_targets_than_the_device_are_not_tried(made, interpreted, normal, monkeypatch):
    monkeypatch.setattr(kernels, "_error", fail)
    matmul(normal(1, 96), made("Q4_0", 7, 3)[0])


def gradients(function, *operands):
    """The value and gradients of sum(function * c) for random c."""
    y, transpose = jax.vjp(function, *operands)
    c = jax.tree.map(
        lambda a: jnp.asarray(np.random.default_rng(0).standard_normal(a.shape), a.dtype), y
    )
    return jax.tree.leaves((y, transpose(c)))


@pytest.mark.parametrize("count", [3, 20])
def test_the_gradient_of_matmul(count, made, interpreted, normal, distance):
    w, _ = made("Q5_1", 37, 3)
    x = normal(count, 96)
    (y, d_x), (plain_y, plain_d_x) = (
        gradients(functools.partial(matmul, weight=w, activations="float", implementation=how), x)
        for how in ("triton", "xla")
    )
    assert (
        distance(y, np.float64(plain_y)) < FLOAT32
        and distance(d_x, np.float64(plain_d_x)) < FLOAT32
    )


class Several:
    """Products of every kind: several types with bias, residual, SwiGLU, after a norm."""

    def __init__(self, made, normal):
        types = (("Q4_0", 7, 3), ("Q8_0", 9, 3), ("Q5_1", 5, 3), ("Q4_0", 5, 3))
        self.first, self.second, self.gate, self.up = (made(*of)[0] for of in types)
        self.operands = (normal(2, 1, 96), 1 + 0.1 * normal(96), normal(7), normal(2, 1, 9, seed=1))

    def __call__(self, x, scale, bias, residual, **how):
        wanted = [
            Product(self.first, bias=bias),
            Product(self.second, residual=residual),
            Product(self.gate, self.up),
        ]
        norm = SimpleNamespace(scale=SimpleNamespace(get_value=lambda: scale), epsilon=1e-5)
        return products(x, wanted, norm=norm, **how)


def test_several_products_and_their_gradients(made, interpreted, calls, normal, distance):
    several = Several(made, normal)
    fused = gradients(
        functools.partial(several, activations="float", implementation="triton"), *several.operands
    )
    assert calls[0] == "few_rows" and len(fused) == 3 + 4
    plain = gradients(functools.partial(several, implementation="xla"), *several.operands)
    for one, other in zip(fused, plain):
        assert one.dtype == other.dtype and distance(one, np.float64(other)) < 3 * FLOAT32


@pytest.mark.parametrize("case", ["many rows", "a dense weight", "as it is stored"])
def test_products_that_do_not_fuse_are_done_one_by_one(
    case, made, interpreted, calls, normal, distance
):
    w, dense = made("Q4_0", 96, 3)
    count, wanted = {
        "many rows": (20, w),
        "a dense weight": (2, jnp.asarray(dense, jnp.float32)),
        "as it is stored": (2, w.T),
    }[case]
    x, residual = normal(count, 96), normal(count, 96, seed=1)
    out = products(x, [Product(wanted, residual=residual), Product(w)], activations="float")
    truth = np.float64(x) @ (dense.T if case == "as it is stored" else dense)
    assert distance(out[0], truth + residual) < FLOAT32
    assert distance(out[1], np.float64(x) @ dense) < FLOAT32
    assert (
        calls
        == {
            "many rows": ["dequantize"] * 2,
            "a dense weight": ["few_rows"],
            "as it is stored": ["dequantize", "few_rows"],
        }[case]
    )
