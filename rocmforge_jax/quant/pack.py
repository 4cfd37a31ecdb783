"""Packs arrays: `quantize`, the way back from `dequantize`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.quant.ops import dequantize
from rocmforge_jax.quant.qtensor import QTensor, value_of


def quantize(weight, type, *, transposed: bool | None = None, layout: str | None = None) -> QTensor:
    """Packs a matrix, or a stack of them, in blocks of a ggml type. The shape stays.

    The host computes it, with the bytes of `formats.quantize`.

    Args:
        weight: An array of float32, bfloat16 or float16, [..., N, K]; an nnx.Variable that holds
            one; or a QTensor or QParam, whose values are packed anew.
        type: Name (any case), ggml id or Format.
        transposed: Whether blocks lie along the last axis but one, as in a Flax kernel (in, out).
            Default: as in a QTensor, and False for an array.
        layout: Of the planes, default the one that is fast on the device.

    Raises:
        NotImplementedError: There is no quantiser for the type.
        ValueError: A plain type, no matrix, rows that are not whole blocks, or values that the type
            cannot hold.
    """
    format, value = formats.get(type), value_of(weight)
    if not format.is_quantized:
        raise ValueError(f"{format} is not quantised: cast the array to its dtype")
    if isinstance(value, QTensor):
        transposed = value.transposed if transposed is None else transposed
        value = dequantize(value)
    if getattr(value, "ndim", 0) < 2:
        raise ValueError(
            f"a {format} matrix is made of an array [..., N, K], got"
            f" {list(getattr(value, 'shape', ()))}"
        )
    rows = np.asarray(value)
    rows = np.ascontiguousarray(np.swapaxes(rows, -1, -2)) if transposed else rows
    return _split(formats.quantize(rows, format), format.name, layout, bool(transposed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(row_bytes, type_name, layout, transposed):
    return QTensor.from_bytes(
        jnp.asarray(row_bytes), type_name, layout=layout, transposed=transposed
    )
