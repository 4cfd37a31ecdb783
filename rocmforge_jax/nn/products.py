"""Several products of one input, fused with the norm before and the additions after them.

`products` accepts modules and decides whether to fuse them: on a GPU into one or two launches, on
a CPU into one call of C++. The base layers of adapters are fused too. Modules of other classes, for
example `nnx.LoRA`, are called one by one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.activation_functions import SILU, ActivationFunction
from pallas_kernels.qmatmul import Product
from rocmforge_jax import quant
from rocmforge_jax.backends import Numerics, Operation, choose, cpp, differentiable, pallas
from rocmforge_jax.nn.linear import (
    Embedding,
    Linear,
    how,
    scaled_and_biased,
    value_or_none,
    wide,
)
from rocmforge_jax.nn.lora import LoRALinear
from rocmforge_jax.nn.mlp import gated
from rocmforge_jax.nn.norm import require_fusable, rms_norm
from rocmforge_jax.nn.quantized_input import QuantizedInput, array_of
from rocmforge_jax.quant.multiply import (
    require_cpp,
    require_pallas,
    require_transposed,
    require_whole,
)


class Gate(NamedTuple):
    """Two modules that together compute activation(gate(x)) * up(x)."""

    gate: Any
    up: Any
    activation: ActivationFunction = SILU


class Activated(NamedTuple):
    """A module followed by an activation function: activation(layer(x))."""

    layer: Any
    activation: ActivationFunction


class TiedHead(NamedTuple):
    """The output head of a tied embedding that is not an `Embedding`, for example an adapter."""

    embedding: Any


def products(
    x: jax.Array | QuantizedInput,
    modules: Sequence[Any],
    *,
    norm=None,
    residual: jax.Array | None = None,
    dtype=None,
) -> list[jax.Array]:
    """Applies several modules to norm(x).

    Args:
        x: [..., in].
        modules: `Linear` layers, with or without adapters, `Gate` pairs, `Activated` layers, or
            other callables, which are called one by one. An `Embedding` stands for the product with
            its transpose.
        norm: Applied to x first, or None.
        residual: [..., out], added to the output; only for a single module.
        dtype: Dtype of the outputs, default x's.

    Returns:
        The output [..., out] of each module. Differentiable in everything except packed weights.

    Raises:
        ValueError: There is a residual but not exactly one module.
    """
    if residual is not None and len(modules) != 1:
        raise ValueError(f"a residual is added to the output of one module, got {len(modules)}")
    if not modules:
        return []
    x = x if isinstance(x, QuantizedInput) else QuantizedInput(x)
    dtype = jnp.dtype(dtype or x.array.dtype)
    if any(isinstance(layer, LoRALinear) for layer in _layers(modules)):
        return _adapted(x, modules, norm, residual, dtype)
    rows = math.prod(x.array.shape[:-1])
    operands = rows, x.array.dtype, tuple(modules), norm
    choice = choose(PRODUCTS, operands, _numerics(modules).backend)
    if choice.name == "xla":
        return _one_by_one(array_of(x), modules, norm, residual, dtype)
    return _fused(choice.name, x, modules, norm, residual, dtype)


def _parts(module) -> tuple[tuple, ActivationFunction | None]:
    """Returns the layers of a module, and the activation function after them or None."""
    if isinstance(module, Gate | Activated):
        *layers, activation = module
        return tuple(layers), activation
    return (module,), None


def _layers(modules) -> list:
    """Returns all layers as a flat list; a `Gate` contributes two."""
    return [layer for module in modules for layer in _parts(module)[0]]


def _numerics(modules) -> Numerics:
    """Returns the numerics of the first layer that has this attribute, else the default."""
    found = (getattr(layer, "numerics", None) for layer in _layers(modules))
    return next((numerics for numerics in found if numerics is not None), Numerics())


def _adapted(x, modules, norm, residual, dtype):
    """Computes the base layers together, then adds the results of the adapters for norm(x).

    Modules with an activation function are split into their layers, because the result of an
    adapter is added before the function.
    """
    apart = [
        _parts(module)
        if any(isinstance(layer, LoRALinear) for layer in _parts(module)[0])
        else ((module,), None)
        for module in modules
    ]
    bases = [
        layer.base_module if isinstance(layer, LoRALinear) else layer
        for layers, _ in apart
        for layer in layers
    ]
    is_sum = apart[0][1] is None
    added = residual if is_sum else None
    computed = iter(products(x, bases, norm=norm, residual=added, dtype=dtype))
    normed = array_of(x) if norm is None else norm(array_of(x))
    outputs = []
    for layers, activation in apart:
        applied = [
            layer.added(y, normed) if isinstance(layer, LoRALinear) else y
            for layer, y in zip(layers, computed)
        ]
        outputs.append(_activated(applied, activation))
    if residual is None or is_sum:
        return outputs
    return [residual + outputs[0].astype(residual.dtype)]


def _one_by_one(x, modules, norm, residual, dtype):
    x = x if norm is None else norm(x)
    outputs = []
    for module in modules:
        layers, activation = _parts(module)
        applied = [_apply(layer, x, dtype) for layer in layers]
        outputs.append(_activated(applied, activation))
    return outputs if residual is None else [residual + outputs[0].astype(residual.dtype)]


def _activated(applied, activation):
    return applied[0] if activation is None else gated(*applied, activation=activation)


def _apply(layer, x, dtype):
    if type(layer) is Linear:
        return layer(x, dtype)
    if isinstance(layer, Embedding):
        return layer.attend(x, dtype)
    if isinstance(layer, TiedHead):
        return layer.embedding.attend(x).astype(dtype)
    return layer(x).astype(dtype)


def _weights(modules, norm) -> list:
    """Returns the layers' packed weights; raises NotImplementedError if they cannot be fused."""
    require_fusable(norm)
    layers = _layers(modules)
    if others := [type(m).__name__ for m in layers if type(m) not in (Linear, Embedding)]:
        raise NotImplementedError(f"a layer is a {others[0]}")
    if len({layer.numerics for layer in layers}) > 1:
        raise NotImplementedError("the layers differ in their numerics")
    weights = [_weight(layer) for layer in layers]
    if not all(isinstance(weight, quant.QTensor) for weight in weights):
        raise NotImplementedError("a weight is not packed")
    for weight in weights:
        require_whole(weight)
        require_transposed(weight)
    return weights


def _weight(layer) -> Any:
    """Returns the (in, out) weight of a layer."""
    return (
        layer.embedding.get_value().T if isinstance(layer, Embedding) else layer.kernel.get_value()
    )


def _check_pallas(rows, dtype, modules, norm) -> str:
    pallas.target()
    mode = _numerics(modules).activations
    targets = {require_pallas(weight, mode) for weight in _weights(modules, norm)}
    kernel = pallas.kernel_of_product(rows, dtype)
    if not rows or kernel == "dequantize":
        most = pallas.packed_rows(dtype)
        raise NotImplementedError(f"{rows} rows, the fused kernels take 1 to {most}")
    how = (
        f"one or two launches, {mode} activations"
        if kernel == "gemv"
        else "two or three launches, on the matrix units"
    )
    return f"{_described(modules, norm)} in {how}, {targets.pop()}"


def _check_cpp(rows, dtype, modules, norm) -> str:
    cpp.instructions()
    mode = _numerics(modules).activations
    used = {require_cpp(weight, mode) for weight in _weights(modules, norm)}
    if not rows:
        raise NotImplementedError("there is no row to multiply")
    return f"{_described(modules, norm)} in one call, {mode} activations, C++ with {used.pop()}"


def _described(modules, norm) -> str:
    count = len(_layers(modules))
    functions = dict.fromkeys(str(f) for _, f in map(_parts, modules) if f is not None)
    after = f" with {' and '.join(functions)}" if functions else ""
    return f"{'norm and ' if norm is not None else ''}{count} product{'s' * (count > 1)}{after}"


PRODUCTS = Operation("products", {"pallas": _check_pallas, "cpp": _check_cpp}, fused=True)


def _fused(backend, x, modules, norm, residual, dtype):
    """Calls a kernel with flattened arrays and restores the leading axes of x."""
    numerics = _numerics(modules)
    scale, epsilon = (None, 0.0) if norm is None else (norm.scale.get_value(), norm.epsilon)
    takes_ready = norm is None and backend == "pallas"
    ready = x.activations_in(numerics.activations) if takes_ready else None
    wanted = [_product(module) for module in modules]
    if residual is not None:
        (only,) = wanted
        wanted = [only._replace(residual=_flat(residual))]
    run = _Fused(backend, numerics, dtype, epsilon)
    outputs = differentiable(run, _flat(x.array), ready, scale, wanted)
    return [y.reshape(*x.array.shape[:-1], -1) for y in outputs]


def _flat(a):
    return a.reshape(-1, a.shape[-1])


def _product(module) -> Product:
    layers, activation = _parts(module)
    scales, biases = (
        tuple(value_or_none(getattr(layer, name, None)) for layer in layers)
        for name in ("output_scale", "bias")
    )
    weights = tuple(map(_weight, layers))
    return Product(weights, biases, scales=scales, activation=activation)


@dataclasses.dataclass(frozen=True)
class _Fused:
    """The products as a function of arrays: fused, and one by one for gradients."""

    backend: str
    numerics: Numerics
    dtype: jnp.dtype
    epsilon: float

    def __call__(self, x, ready, scale, wanted):
        norm = dict(norm=scale, epsilon=self.epsilon)
        if self.backend == "pallas" and pallas.kernel_of_product(x.shape[0], x.dtype) != "gemv":
            return pallas.skinny_gemm(x, wanted, dtype=self.dtype, **norm)
        multiply = cpp.multiply if self.backend == "cpp" else pallas.gemv
        x = x if ready is None else ready
        return multiply(x, wanted, mode=self.numerics.activations, dtype=self.dtype, **norm)

    def plain(self, x, ready, scale, wanted):
        x = x if scale is None else rms_norm(x, scale, self.epsilon)
        # C++ has no gradients, so plain XLA computes them.
        backend = "xla" if self.backend == "cpp" else self.numerics.backend
        numerics = dataclasses.replace(self.numerics, backend=backend)
        return [_plain_product(x, product, numerics, self.dtype) for product in wanted]


def _plain_product(x, product: Product, numerics: Numerics, dtype):
    multiplied = []
    for weight, scale, bias in product.of_each_weight:
        y = quant.matmul(x, weight, dtype=wide(dtype, scale), **how(numerics))
        multiplied.append(scaled_and_biased(y, scale, bias, dtype))
    y = _activated(multiplied, product.activation)
    return y if product.residual is None else product.residual + y.astype(product.residual.dtype)
