"""Merges adapters into their layers' weights, or takes them away."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax import formats
from rocmforge_jax.adapters.wrap import adapters, replaced
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models import Decoder
from rocmforge_jax.nn.lora import Adapter, refuse_flax_adapters
from rocmforge_jax.quant import QParam, QTensor, dequantize


def remove_lora(model: Decoder) -> Decoder:
    """Returns the model without its adapters; it shares every other array."""
    adapters(model)  # checks the argument
    refuse_flax_adapters(model, "remove_lora")
    return replaced(
        model, lambda _, layer: layer.base_module if isinstance(layer, Adapter) else layer
    )


def merge_lora(model: Decoder, type: str | None = None, *, dtype: Any = jnp.float32) -> Decoder:
    """Returns a model whose weights hold what the adapters add.

    Args:
        model: A decoder with adapters. It stays as it is, and shares all other arrays.
        type: The ggml type that merged weights are packed in, such as "Q8_0"; "same" for the type
            that each has now. Default: they become dense.
        dtype: Of dense weights.

    Raises:
        ValueError: There is no adapter, the type is not quantised, or rows are not whole blocks of
            it.
        NotImplementedError: Nothing here packs weights in that type.
    """
    found = adapters(model)
    refuse_flax_adapters(model, "merge_lora")
    if not found:
        raise ValueError("the model has no adapter to merge")
    types = {name: _type(layer.base_module.kernel, type) for name, layer in found.items()}
    _check_blocks(found, types)

    def merged(name, layer):
        if not isinstance(layer, Adapter):
            return layer
        base = layer.base_module
        base.kernel = _kernel(_sum(layer), types[name], dtype)
        return base

    return replaced(model, merged)


def _type(kernel, wanted: str | None) -> str | None:
    """Returns the name of the type in which to pack a merged kernel; None to leave it dense.

    Args:
        kernel: The kernel before it is merged.
        wanted: A quantised type, "same" for the kernel's own type, or None for dense.
    """
    if wanted is None:
        return None
    if wanted == "same":
        value = kernel.get_value()
        return value.type_name if isinstance(value, QTensor) else None
    format = formats.get(wanted)
    if not format.is_quantized:
        raise ValueError(f"{format.name} is not quantised: give dtype and no type")
    return format.name


def _check_blocks(found, types) -> None:
    problems = []
    for name, layer in found.items():
        inputs, type_name = layer.base_module.kernel.shape[-2], types[name]
        if type_name is not None and inputs % (block := formats.get(type_name).block):
            problems.append(f"{name} has rows of {inputs}, {type_name} blocks of {block}")
    if problems:
        raise ValueError(f"rows must be whole blocks: {listed(problems)}: leave them dense")


def _sum(layer: Adapter) -> jax.Array:
    """Computes the weight, of the kernel's shape, that does what the layer does, float32."""
    kernel = layer.base_module.kernel
    packed = isinstance(kernel, QParam)
    weight = dequantize(kernel) if packed else kernel.get_value().astype(jnp.float32)
    a, b = (m.get_value().astype(jnp.float32) for m in (layer.lora_a, layer.lora_b))
    change = jnp.float32(layer.scale) * jnp.matmul(a, b, precision="highest")
    factor = layer.base_module.output_scale
    # The layer multiplies the product by the factor, and the adapter's comes after that.
    if factor is None:
        return weight + change
    return weight + change / factor.get_value().reshape(-1, *(1,) * (weight.ndim - 1))


def _kernel(weight, type_name: str | None, dtype) -> nnx.Variable:
    if type_name is None:
        return nnx.Param(weight.astype(dtype))
    rows = np.ascontiguousarray(np.asarray(weight).swapaxes(-1, -2))
    packed = formats.quantize(rows, type_name)
    return QParam(QTensor.from_bytes(packed, type_name, transposed=True))
