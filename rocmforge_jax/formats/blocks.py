"""Dequantises blocks on the device. Importing this module imports JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.formats.format import Format
from rocmforge_jax.formats.registry import get

DTYPES = tuple(np.dtype(name) for name in ("float32", "bfloat16", "float16"))


def dequantize(
    block_bytes, format: str | int | Format, *, dtype=jnp.float32, count: int | None = None
) -> jax.Array:
    """Dequantises rows of blocks: uint8 [..., row bytes] -> dtype [..., elements].

    The float32 values equal ggml's bit for bit; other dtypes are rounded from them.

    Args:
        block_bytes: A NumPy or JAX array. The last axis is a whole number of blocks.
        format: A name (any case), a ggml id or a Format.
        dtype: float32, bfloat16 or float16.
        count: The number of values to return from each row, whose last block may be used partially.
            Default: all.

    Raises:
        ValueError: The array is not uint8 or not whole blocks, has fewer blocks than `count` needs,
            or `dtype` is not supported.
    """
    format, dtype = get(format), np.dtype(dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dequantize gives {', '.join(map(str, DTYPES))}, not {dtype}")
    if not hasattr(block_bytes, "dtype") or block_bytes.dtype != np.uint8 or block_bytes.ndim < 1:
        raise ValueError(
            f"{format.name} bytes are an array uint8 [..., row bytes], got {_describe(block_bytes)}"
        )
    blocks = format.row_blocks(block_bytes.shape[-1])
    if count is None:
        return _dequantize(block_bytes, format, dtype)
    count = integer("count", count, 0)
    needed = -(-count // format.block)
    if needed > blocks:
        raise ValueError(
            f"{count} {format.name} values take {needed} blocks of {format.block_bytes} bytes ="
            f" {needed * format.block_bytes} bytes, got {blocks} = {block_bytes.shape[-1]} bytes"
        )
    return _dequantize(block_bytes[..., : needed * format.block_bytes], format, dtype)[..., :count]


@partial(jax.jit, static_argnums=(1, 2))
def _dequantize(block_bytes, format, dtype):
    *lead, nbytes = block_bytes.shape
    blocks = format.row_blocks(nbytes)

    def decode(fields):
        return format.values(**fields)

    for _ in range(len(lead) + 1):
        decode = jax.vmap(decode)
    values = decode(format.split(block_bytes.reshape(*lead, blocks, format.block_bytes)))
    return values.astype(jnp.float32).astype(dtype).reshape(*lead, blocks * format.block)


def _describe(a):
    return f"{a.dtype} {list(a.shape)}" if hasattr(a, "shape") else type(a).__name__
