"""Products with packed weights on a CPU: `multiply.cc` as a JAX function. It computes what `pallas_kernels.qmatmul` does on a GPU.

Whoever calls it has it compiled by `build.build` and loads what that made.
"""

import ctypes
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul.api import Product

#: The modes of activations that there are, and in how many bytes each has a number: see `qmatmul.activations`.
MODES = {"int16": 2, "int8": 1}
_TARGET = "rocmforge_multiply"
#: In the order of `enum Scale`.
_SCALES = ("d", "int8", "nibbles", "bytes", "e8m0", "e4m3")
_PLANES = ("codes", "d", "scale")


@functools.cache
def load(library: Path) -> str:
    """Make a compiled library known to JAX -> the instructions it uses. OSError: it is no such library."""
    loaded = _opened(library)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(loaded.Multiply), platform="cpu")
    return loaded.kernels_in_use().decode()


def instructions(library: Path) -> list[str]:
    """The sets of instructions that the library has kernels for and this processor can run, the quickest first."""
    names = iter(lambda index=itertools.count(): _opened(library).kernels_that_run(next(index)), None)
    return [name.decode() for name in names]


def use(library: Path, name: str) -> None:
    """Have all products use these instructions from now on: for tests and measurements. ValueError: none of `instructions`."""
    if not _opened(library).use_kernels(name.encode()):
        raise ValueError(f"{name!r} is none of the instructions of this processor: {', '.join(instructions(library))}")


@functools.cache
def _opened(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.kernels_in_use.restype = loaded.kernels_that_run.restype = ctypes.c_char_p
    loaded.use_kernels.restype = ctypes.c_bool
    return loaded


def multiply(x_MK, products: list[Product], *, mode: str, norm=None, epsilon: float = 0.0) -> list[jax.Array]:
    """All products of one float32 input [M, K] in one call -> float32 [M, N] each.

    norm: the scale [K] of an RMSNorm that x goes through first, or None. NotImplementedError: a mode that is none of MODES.
    """
    if mode not in MODES:
        raise NotImplementedError(f"{mode} activations; there are {', '.join(MODES)}")
    operands, numbers, tables = [], [], []
    for product in products:
        numbers += [len(product.weights), product.bias is not None, product.residual is not None]
        for weight in product.weights:
            operands += [weight.planes[name] for name in _PLANES if name in weight.planes]
            numbers += _numbers(weight.packing)
            tables += [byte & 255 for byte in weight.packing.table or [0] * 16]
        operands += [a.astype(jnp.float32) for a in (product.bias, product.residual) if a is not None]
    M, K = x_MK.shape
    norm = jnp.zeros((0,), jnp.float32) if norm is None else norm.astype(jnp.float32)
    outputs = [jax.ShapeDtypeStruct((M, product.weights[0].rows), jnp.float32) for product in products]
    call = jax.ffi.ffi_call(_TARGET, outputs, vmap_method="sequential")
    return call(
        x_MK.astype(jnp.float32), norm, *operands,
        jobs=np.array(numbers, np.int64), tables=np.array(tables, np.uint8), parts=np.int64(MODES[mode]), epsilon=np.float32(epsilon),
    )  # fmt: skip


def _numbers(packing: Packing) -> list[int]:
    scale = _SCALES.index(packing.scale)
    return [packing.bits, packing.offset, scale, packing.halves, packing.span, packing.minimum, packing.table is not None]
