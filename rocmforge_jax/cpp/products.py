"""Products with packed weights on a CPU: `multiply.cc` and `experts.cc` in JAX.

They compute the same as `pallas_kernels.qmatmul` on a GPU. The functions call the library that
`library.load` loaded.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing
from pallas_kernels.qmatmul import Product
from rocmforge_jax.cpp import library, partition

#: Modes of activations (see `qmatmul.activations`), and the bytes per number in each mode.
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
        products: The products, with packed weights. A product with experts must be the only one.
        mode: The format that the input is quantised to, one of MODES.
        norm: The scale [K] of an RMSNorm to apply to the input first, or None.
        epsilon: The epsilon of the norm.

    Returns:
        The output of each product, [M, N], or [P, N] with experts.

    Raises:
        NotImplementedError: The mode is not in MODES, or the library does not support a packing.
        ValueError: The shapes do not fit together.
        RuntimeError: No library is loaded.
    """
    if mode not in MODES:
        raise NotImplementedError(f"{mode} activations; there are {', '.join(MODES)}")
    validate(x_MK, products, norm)
    experts = products[0].experts
    # With experts, rows of x are tokens and rows of outputs are pairs. Neither axis is split.
    rows, rows_of_x = ("m", "m") if experts is None else ("PAIRS", "TOKENS")
    inputs, axes = [x_MK.astype(jnp.float32)], [f"{rows_of_x} K"]
    if norm is not None:
        inputs, axes = [*inputs, norm.astype(jnp.float32)], [*axes, "K"]
    if experts is not None:
        inputs, axes = [*inputs, experts.astype(jnp.int32)], [*axes, "PAIRS"]
    operands, of_operands, first, attributes = _described(products, rows)
    call = _Call(
        first=first,
        has_norm=norm is not None,
        has_experts=experts is not None,
        parts=MODES[mode],
        epsilon=epsilon,
        **attributes,
    )
    results = [f"{rows} n{n}" for n in range(len(products))]
    return partition.call(call, [*inputs, *operands], [*axes, *of_operands], results)


@dataclasses.dataclass(frozen=True)
class _Call:
    """The call of the library as a function of its arrays.

    Attributes:
        first: The index of the codes of each product among the operands after the inputs.
        has_norm: Whether the second array is the scale of a norm.
        has_experts: Whether the next array has the expert of each pair.
        jobs: The numbers that `read_jobs` in jobs.h reads.
        tables: The tables of the weights, 16 bytes each.
        factors: The constants of the activation functions, two per product.
        parts: The bytes of a quantised number.
        epsilon: The epsilon of the norm.
    """

    first: tuple[int, ...]
    has_norm: bool
    has_experts: bool
    jobs: tuple[int, ...]
    tables: tuple[int, ...]
    factors: tuple[float, ...]
    parts: int
    epsilon: float

    def __call__(self, x_MK, *arrays) -> list[jax.Array]:
        inputs, operands = arrays[: self.has_norm], arrays[self.has_norm + self.has_experts :]
        inputs = inputs or (jnp.zeros((0,), jnp.float32),)
        target, rows = "rocmforge_multiply", x_MK.shape[0]
        if self.has_experts:
            experts = arrays[self.has_norm]
            target, rows = "rocmforge_multiply_experts", experts.shape[0]
            inputs = (*inputs, experts)
        outputs = [
            jax.ShapeDtypeStruct((rows, operands[place].shape[-3]), jnp.float32)
            for place in self.first
        ]
        outputs = jax.ffi.ffi_call(target, outputs)(
            x_MK,
            *inputs,
            *operands,
            jobs=np.array(self.jobs, np.int64),
            tables=np.array(self.tables, np.uint8),
            factors=np.array(self.factors, np.float32),
            parts=np.int64(self.parts),
            epsilon=np.float32(self.epsilon),
        )
        return list(outputs)


def _described(products: list[Product], rows: str):
    """Lists the operands of products, and the numbers that `read_jobs` in jobs.h reads.

    Returns:
        The operands, the names of the axes of each operand, the index of the first operand of each
        product, and the attributes `jobs`, `tables` and `factors` of `_Call`.
    """
    operands, axes, first, numbers, tables, factors = [], [], [], [], [], []
    for n, product in enumerate(products):
        function, stack = product.activation, [] if product.experts is None else ["EXPERTS"]
        first.append(len(operands))
        numbers += [len(product.weights), _FUNCTIONS.index(function and function.name)]
        numbers += [product.residual is not None]
        factors += [0, 0] if function is None else [function.alpha, function.limit]
        for weight, scale, bias in product.of_each_weight:
            numbers += [scale is not None, bias is not None, *_numbers(weight.packing)]
            tables += _table(weight.packing)
            planes = [weight.planes[name] for name in _PLANES if name in weight.planes]
            # All arrays have an axis of outputs, except the scale, which is one number per matrix.
            for leading, arrays in (
                ([*stack, f"n{n}"], planes),
                (stack or ["ONE"], _floats(scale)),
                ([*stack, f"n{n}"], _floats(bias)),
            ):
                for array in arrays:
                    inner = [f"W{len(axes)}X{i}" for i in range(len(leading), array.ndim)]
                    axes.append(" ".join([*leading, *inner]))
                    operands.append(array)
        if product.residual is not None:
            operands, axes = [*operands, *_floats(product.residual)], [*axes, f"{rows} n{n}"]
    attributes: dict[str, Any] = dict(
        jobs=tuple(map(int, numbers)), tables=tuple(tables), factors=tuple(map(float, factors))
    )
    return operands, axes, tuple(first), attributes


def validate(x_MK, products: list[Product], norm=None) -> None:
    """Checks the shapes of the operands of `multiply`, because the C++ code does not check them.

    Raises the same errors as `multiply`.
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
        N, stack = product.weights[0].rows, _stack(product, M, len(products))
        for weight in product.weights:
            _validate_weight(weight, stack, N, K)
        product.check_epilogue()
        if product.residual is not None and product.residual.shape != (M, N):
            got = list(product.residual.shape)
            raise ValueError(f"residual has shape {got}: expected {[M, N]}")


def _stack(product: Product, M: int, count: int) -> tuple[int, ...]:
    """Returns (E,) for a product with experts, else ()."""
    if product.experts is None:
        return ()
    if count > 1 or product.residual is not None:
        raise ValueError(
            f"a product with experts is computed alone and without a residual, got {count} products"
        )
    if product.experts.ndim != 1 or product.experts.shape[0] % M:
        raise ValueError(
            f"experts have shape {list(product.experts.shape)}, x has {M} rows: expected [P] with a"
            f" multiple of {M}"
        )
    return product.weights[0].planes["codes"].shape[:1]


def _validate_weight(weight, stack: tuple[int, ...], N: int, K: int) -> None:
    packing, groups = weight.packing, K // GROUP
    require_form(packing)
    if groups % packing.span:
        raise ValueError(
            f"{groups} groups of a row share scales by {packing.span}: {K} inputs are no whole"
            " number of them"
        )
    shapes = {
        "codes": (*stack, N, packing.bits, groups),
        "d": (*stack, N, groups // packing.span),
        "scale": (*stack, N, packing.halves, groups),
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
    """Returns the arrays that are not None, as float32."""
    return [array.astype(jnp.float32) for array in arrays if array is not None]


def require_form(packing: Packing) -> None:
    """Raises NotImplementedError for a packing that the library does not support."""
    has_table, has_minimum = packing.table is not None, bool(packing.minimum)
    form = library.Form(packing.bits, has_table, packing.halves, has_minimum)
    if form not in library.forms(library.loaded()):
        raise NotImplementedError(f"the C++ library has no code for {packing}")


def _table(packing: Packing) -> list[int]:
    """Returns the table minus the packing's offset as 16 bytes; zeros without a table."""
    return (
        [(entry - packing.offset) & 255 for entry in packing.table] if packing.table else [0] * 16
    )


def _numbers(packing: Packing) -> list[int]:
    """Returns the numbers of a packing that `read_jobs` in jobs.h reads."""
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
