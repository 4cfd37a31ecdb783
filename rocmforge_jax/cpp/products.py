"""Products with packed weights on a CPU: `multiply.cc` in JAX.

They compute what `pallas_kernels.qmatmul` computes on a GPU. The function belongs to the library
that `library.load` loaded.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing
from pallas_kernels.qmatmul import Product
from rocmforge_jax.cpp import library, partition

#: Modes of activations (see `qmatmul.activations`) and the bytes of a number in each.
MODES = {"int16": 2, "int8": 1}
#: In the order of `enum Scale` in kernels.h.
_SCALES = ("d", "int8", "nibbles", "bytes", "e8m0", "e4m3")
#: In the order of `enum FunctionName`.
_FUNCTIONS = (None, "silu", "gelu", "relu2", "swiglu_oai")
_PLANES = ("codes", "d", "scale")


def multiply(
    x_MK, products: list[Product], *, mode: str, norm=None, epsilon: float = 0.0
) -> list[jax.Array]:
    """Computes all products of one input in one call, in float32.

    Args:
        x_MK: The input.
        products: The products, with packed weights.
        mode: One of MODES: the numbers that the input is rounded to.
        norm: The scale [K] of an RMSNorm to apply to the input first, or None.
        epsilon: That of the norm.

    Returns:
        The outputs [M, N], one of each product.

    Raises:
        NotImplementedError: A mode outside of MODES, or a packing without code.
        ValueError: Shapes that do not fit.
        RuntimeError: No library is loaded.
    """
    if mode not in MODES:
        raise NotImplementedError(f"{mode} activations; there are {', '.join(MODES)}")
    validate(x_MK, products, norm)
    operands, axes, numbers, tables, factors = [x_MK.astype(jnp.float32)], ["m K"], [], [], []
    if norm is not None:
        operands, axes = [*operands, norm.astype(jnp.float32)], [*axes, "K"]
    first = []
    for n, product in enumerate(products):
        function = product.activation
        first.append(len(operands))
        numbers += [len(product.weights), _FUNCTIONS.index(function and function.name)]
        numbers += [product.residual is not None]
        factors += [0, 0] if function is None else [function.alpha, function.limit]
        for weight, scale, bias in product.of_each_weight:
            numbers += [scale is not None, bias is not None, *_numbers(weight.packing)]
            tables += _table(weight.packing)
            planes = [weight.planes[name] for name in _PLANES if name in weight.planes]
            # All but the scale of one number have an axis of outputs first.
            for first_axis, arrays in (
                (f"n{n}", planes),
                ("ONE", _floats(scale)),
                (f"n{n}", _floats(bias)),
            ):
                for array in arrays:
                    inner = [f"W{len(axes)}X{i}" for i in range(1, array.ndim)]
                    axes.append(" ".join([first_axis, *inner]))
                    operands.append(array)
        if product.residual is not None:
            operands, axes = [*operands, *_floats(product.residual)], [*axes, f"m n{n}"]
    call = _Call(
        first=tuple(first),
        has_norm=norm is not None,
        jobs=tuple(map(int, numbers)),
        tables=tuple(tables),
        factors=tuple(factors),
        parts=MODES[mode],
        epsilon=epsilon,
    )
    return partition.call(call, operands, axes, [f"m n{n}" for n in range(len(products))])


@dataclasses.dataclass(frozen=True)
class _Call:
    """The call of the library as a function of its arrays.

    Attributes:
        first: The place of the first plane of each product among the arrays.
        has_norm: Whether the second array is the scale of a norm.
        jobs: What `read_jobs` in multiply.cc reads.
        tables: The tables of the weights, 16 bytes each.
        factors: The constants of the activation functions, two of each product.
        parts: Bytes of a rounded number.
        epsilon: That of the norm.
    """

    first: tuple[int, ...]
    has_norm: bool
    jobs: tuple[int, ...]
    tables: tuple[int, ...]
    factors: tuple[float, ...]
    parts: int
    epsilon: float

    def __call__(self, x_MK, *arrays) -> list[jax.Array]:
        rows = [arrays[place - 1].shape[0] for place in self.first]
        outputs = [jax.ShapeDtypeStruct((x_MK.shape[0], N), jnp.float32) for N in rows]
        norm = () if self.has_norm else (jnp.zeros((0,), jnp.float32),)
        outputs = jax.ffi.ffi_call("rocmforge_multiply", outputs)(
            x_MK,
            *norm,
            *arrays,
            jobs=np.array(self.jobs, np.int64),
            tables=np.array(self.tables, np.uint8),
            factors=np.array(self.factors, np.float32),
            parts=np.int64(self.parts),
            epsilon=np.float32(self.epsilon),
        )
        return list(outputs)


def validate(x_MK, products: list[Product], norm=None) -> None:
    """Checks the operands of `multiply` by their shapes, which the C++ code relies on.

    It raises what `multiply` raises.
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
        N = product.weights[0].rows
        for weight in product.weights:
            _validate_weight(weight, N, K)
        product.check_epilogue()
        if product.residual is not None and product.residual.shape != (M, N):
            got = list(product.residual.shape)
            raise ValueError(f"residual has shape {got}: expected {[M, N]}")


def _validate_weight(weight, N: int, K: int) -> None:
    packing, groups = weight.packing, K // GROUP
    require_form(packing)
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


def _floats(*arrays) -> list[jax.Array]:
    """Returns those that are not None, as float32."""
    return [array.astype(jnp.float32) for array in arrays if array is not None]


def require_form(packing: Packing) -> None:
    """Raises NotImplementedError for a packing that the library has no code for."""
    has_table, has_minimum = packing.table is not None, bool(packing.minimum)
    form = library.Form(packing.bits, has_table, packing.halves, has_minimum)
    if form not in library.forms(library.loaded()):
        raise NotImplementedError(f"the C++ library has no code for {packing}")


def _table(packing: Packing) -> list[int]:
    """Returns 16 bytes: the values of the codes less the offset, zeros without a table."""
    return (
        [(entry - packing.offset) & 255 for entry in packing.table] if packing.table else [0] * 16
    )


def _numbers(packing: Packing) -> list[int]:
    """Returns what `read_jobs` in multiply.cc reads of a packing."""
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
