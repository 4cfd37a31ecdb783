"""Products with packed weights on a CPU: `multiply.cc` as a JAX function.

It computes what `pallas_kernels.qmatmul` does on a GPU.

Whoever calls it has it compiled by `build.build` and loads what that made.
"""

import ctypes
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing
from pallas_kernels.qmatmul.api import Product
from rocmforge_jax.cpp import attention

#: The modes of activations that there are, and in how many bytes each has a number: see
#: `qmatmul.activations`.
MODES = {"int16": 2, "int8": 1}
_TARGET = "rocmforge_multiply"
#: In the order of `enum Scale`.
_SCALES = ("d", "int8", "nibbles", "bytes", "e8m0", "e4m3")
_PLANES = ("codes", "d", "scale")
#: What there is code for, as `functions` in few_rows.h: (bits, table, halves, minimum).
_FORMS = {
    (2, False, 1, False),
    (2, False, 2, True),
    (3, False, 2, False),
    (4, False, 1, False),
    (4, False, 1, True),
    (4, True, 1, False),
    (4, True, 2, False),
    (5, False, 1, False),
    (5, False, 1, True),
    (6, False, 2, False),
    (8, False, 1, False),
}


@functools.cache
def load(library: Path) -> str:
    """Make a compiled library known to JAX -> the instructions it uses.

    OSError: it is no such library.
    """
    loaded = _opened(library)
    for name, symbol in {_TARGET: "Multiply", **attention.TARGETS}.items():
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(getattr(loaded, symbol)), platform="cpu"
        )
    return loaded.kernels_in_use().decode()


def instructions(library: Path) -> list[str]:
    """The sets of instructions that the library has kernels for and this processor can run, the
    quickest first.
    """
    names = iter(
        lambda index=itertools.count(): _opened(library).kernels_that_run(next(index)), None
    )
    return [name.decode() for name in names]


def use(library: Path, name: str) -> None:
    """Have all products use these instructions from now on: for tests and measurements.

    ValueError: none of `instructions`.
    """
    if not _opened(library).use_kernels(name.encode()):
        raise ValueError(
            f"{name!r} is none of the instructions of this processor:"
            f" {', '.join(instructions(library))}"
        )


@functools.cache
def _opened(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.kernels_in_use.restype = loaded.kernels_that_run.restype = ctypes.c_char_p
    loaded.use_kernels.restype = ctypes.c_bool
    return loaded


def multiply(
    x_MK, products: list[Product], *, mode: str, norm=None, epsilon: float = 0.0
) -> list[jax.Array]:
    """All products of one input [M, K] in one call, in float32 -> float32 [M, N] each.

    norm: the scale [K] of an RMSNorm that x goes through first, or None. NotImplementedError: a
    mode that is none of MODES, a packing that there is no code for. ValueError: shapes that do not
    fit.
    """
    if mode not in MODES:
        raise NotImplementedError(f"{mode} activations; there are {', '.join(MODES)}")
    validate(x_MK, products, norm)
    operands, numbers, tables = [], [], []
    for product in products:
        numbers += [len(product.weights), product.bias is not None, product.residual is not None]
        for weight in product.weights:
            operands += [weight.planes[name] for name in _PLANES if name in weight.planes]
            numbers += _numbers(weight.packing)
            tables += _table(weight.packing)
        operands += [
            a.astype(jnp.float32) for a in (product.bias, product.residual) if a is not None
        ]
    norm = jnp.zeros((0,), jnp.float32) if norm is None else norm.astype(jnp.float32)
    outputs = [
        jax.ShapeDtypeStruct((x_MK.shape[0], product.weights[0].rows), jnp.float32)
        for product in products
    ]
    call = jax.ffi.ffi_call(_TARGET, outputs, vmap_method="sequential")
    return call(
        x_MK.astype(jnp.float32),
        norm,
        *operands,
        jobs=np.array(numbers, np.int64),
        tables=np.array(tables, np.uint8),
        parts=np.int64(MODES[mode]),
        epsilon=np.float32(epsilon),
    )


def validate(x_MK, products: list[Product], norm=None) -> None:
    """What `multiply` takes, from shapes alone: the code in C++ reads memory as they say.

    Errors as there.
    """
    if x_MK.ndim != 2 or 0 in x_MK.shape or x_MK.shape[1] % GROUP:
        raise ValueError(
            f"x has shape {list(x_MK.shape)}: expected [M, K] with M at least 1 and K a multiple of"
            f" {GROUP}"
        )
    M, K = x_MK.shape
    if norm is not None and norm.shape != (K,):
        raise ValueError(f"norm has shape {list(norm.shape)}, x has {K} inputs: expected [{K}]")
    if not products:
        raise ValueError("there is no product to compute")
    for product in products:
        if len(product.weights) not in (1, 2):
            raise ValueError(
                f"a product has {len(product.weights)} weights: expected 1, or 2 for SwiGLU"
            )
        N = product.weights[0].rows
        for weight in product.weights:
            _validate_weight(weight, N, K)
        for name, array, shape in (
            ("bias", product.bias, (N,)),
            ("residual", product.residual, (M, N)),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {list(array.shape)}: expected {list(shape)}")


def _validate_weight(weight, N: int, K: int) -> None:
    packing, groups = weight.packing, K // GROUP
    if _form(packing) not in _FORMS:
        raise NotImplementedError(f"no code for {packing}")
    if groups % packing.span:
        raise ValueError(
            f"{groups} groups of a row share scales by {packing.span}: {K} inputs are no whole"
            " number of them"
        )
    shapes = {
        "codes": (N, packing.bits, groups),
        "d": (N, groups // packing.span),
        "scale": (N, packing.halves, groups),
    }
    for name, dtype in packing.planes().items():
        if name not in weight.planes:
            raise ValueError(f"the plane {name} is missing, there are {', '.join(weight.planes)}")
        plane = weight.planes[name]
        if plane.shape != shapes[name] or plane.dtype != dtype:
            got, expected = (
                f"{dtype}{list(shape)}"
                for dtype, shape in ((plane.dtype, plane.shape), (dtype, shapes[name]))
            )
            raise ValueError(
                f"the plane {name} is {got}: expected {expected} for {N} rows of {K} inputs"
            )


def _form(packing: Packing):
    return packing.bits, packing.table is not None, packing.halves, packing.minimum


def _table(packing: Packing) -> list[int]:
    """16 bytes: the codes' values, from which the C++ takes no offset.

    Zeros where the packing has none.
    """
    return (
        [(entry - packing.offset) & 255 for entry in packing.table] if packing.table else [0] * 16
    )


def _numbers(packing: Packing) -> list[int]:
    scale = _SCALES.index(packing.scale)
    return [
        packing.bits,
        packing.offset,
        scale,
        packing.halves,
        packing.span,
        packing.minimum,
        packing.table is not None,
    ]
