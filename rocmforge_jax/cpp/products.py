"""Products with packed weights on a CPU: `multiply.cc` and `experts.cc` in JAX.

They compute what `pallas_kernels.qmatmul` computes on a GPU. The functions belong to the library
that `library.load` loaded.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.packing import GROUP, Packing
from pallas_kernels.qmatmul import Product
from rocmforge_jax.cpp import library

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
        products: The products, with packed weights. One with experts is the only one.
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
    norm = jnp.zeros((0,), jnp.float32) if norm is None else norm.astype(jnp.float32)
    inputs, experts = [x_MK.astype(jnp.float32), norm], products[0].experts
    target, rows = "rocmforge_multiply", x_MK.shape[0]
    if experts is not None:
        inputs.append(experts.astype(jnp.int32))
        target, rows = "rocmforge_multiply_experts", experts.shape[0]
    outputs = [
        jax.ShapeDtypeStruct((rows, product.weights[0].rows), jnp.float32) for product in products
    ]
    operands, attributes = _described(products)
    call = jax.ffi.ffi_call(target, outputs, vmap_method="sequential")
    outputs = call(
        *inputs, *operands, **attributes, parts=np.int64(MODES[mode]), epsilon=np.float32(epsilon)
    )
    return list(outputs)


def _described(products: list[Product]) -> tuple[list[jax.Array], dict[str, np.ndarray]]:
    """Returns the operands and the attributes that `read_jobs` in jobs.h reads."""
    operands, numbers, tables, factors = [], [], [], []
    for product in products:
        function = product.activation
        numbers += [len(product.weights), _FUNCTIONS.index(function and function.name)]
        numbers += [product.residual is not None]
        factors += [0, 0] if function is None else [function.alpha, function.limit]
        for weight, scale, bias in product.of_each_weight:
            numbers += [scale is not None, bias is not None, *_numbers(weight.packing)]
            tables += _table(weight.packing)
            operands += [weight.planes[name] for name in _PLANES if name in weight.planes]
            operands += _floats(scale, bias)
        operands += _floats(product.residual)
    arrays = {"jobs": (numbers, np.int64), "tables": (tables, np.uint8)}
    arrays["factors"] = factors, np.float32
    return operands, {name: np.array(*of) for name, of in arrays.items()}


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
    """Returns what `read_jobs` in jobs.h reads of a packing."""
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
