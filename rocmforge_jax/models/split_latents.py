"""Splits attn_kv_b, one matrix for keys and values, into attn_k_b and attn_v_b.

Converters wrote attn_kv_b before April 2025. In it, each head has the rows of its keys, then the
rows of its values. Absorbed latent attention needs the transposed rows of the keys.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.formats import Format
from rocmforge_jax.gguf import TensorInfo
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.mixers import LatentAttention


@dataclasses.dataclass(frozen=True)
class HeadRows:
    """Some rows of each head of a matrix, with the attributes of a TensorInfo.

    Attributes:
        whole: The matrix.
        name: The name of the tensor with these rows in current files.
        heads: The number of heads; the rows of a head are contiguous in the matrix.
        first: The first selected row within each head.
        rows: The number of selected rows of each head.
        transposed: Whether each head's part is transposed. Quantised blocks cannot be transposed,
            so they are dequantised.
    """

    whole: TensorInfo
    name: str
    heads: int
    first: int
    rows: int
    transposed: bool

    @property
    def parts(self) -> tuple[TensorInfo]:
        """The matrix of the file, as the only part."""
        return (self.whole,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Heads, outputs and inputs of the selected part."""
        inputs = self.whole.shape[-1]
        return (self.heads, *((inputs, self.rows) if self.transposed else (self.rows, inputs)))

    @property
    def format(self) -> Format:
        """The format of the matrix, or F32 if it is dequantised."""
        is_kept = not (self.transposed and self.whole.format.is_quantized)
        return self.whole.format if is_kept else formats.get("F32")

    @property
    def offset(self) -> int:
        """The offset of the matrix in the file, in bytes."""
        return self.whole.offset

    @property
    def nbytes(self) -> int:
        """The number of bytes that are read from the file."""
        return self.whole.nbytes * self.rows * self.heads // self.whole.shape[0]

    @property
    def data(self) -> np.ndarray:
        """The bytes, uint8 [*shape[:-1], row bytes]."""
        by_heads = self.whole.data.reshape(self.heads, -1, self.whole.data.shape[-1])
        rows = np.ascontiguousarray(by_heads[:, self.first : self.first + self.rows])
        if not self.transposed:
            return rows
        format = self.whole.format
        if format.is_quantized:
            values = np.asarray(formats.dequantize(rows, format), np.float32)
        else:
            values = rows.view(np.dtype(format.fields[0].dtype))
        values = values.reshape(self.heads, self.rows, -1).transpose(0, 2, 1)
        return np.ascontiguousarray(values).view(np.uint8)

    def forget(self) -> None:
        """Releases the pages of the mapped file that reading `data` brought into memory."""
        self.whole.forget()


def split_latents(
    tensors: Mapping[str, TensorInfo], config: DecoderConfig
) -> tuple[Mapping[str, Any], list[str]]:
    """Adds attn_k_b and attn_v_b for each attn_kv_b, unless the layer already has attn_k_b.

    Returns:
        The tensors by name, and a list of problems: one message for each attn_kv_b with a wrong
        shape.
    """
    added: dict[str, Any] = {}
    problems = []
    layers = [*config.layers, *(one.layer for one in config.nextn)]
    for i, layer in enumerate(layers):
        whole = tensors.get(f"blk.{i}.attn_kv_b.weight")
        mixer, name = layer.mixer, f"blk.{i}.attn_k_b.weight"
        if whole is None or name in tensors or not isinstance(mixer, LatentAttention):
            continue
        heads, keys, values = mixer.heads, mixer.key_width, mixer.value_width
        expected = heads * (keys + values), mixer.rank
        if whole.shape != expected:
            problems.append(
                f"{whole.name} has shape {list(whole.shape)}, expected {list(expected)}"
            )
        added[name] = HeadRows(whole, name, heads, 0, keys, True)
        name = f"blk.{i}.attn_v_b.weight"
        added[name] = HeadRows(whole, name, heads, keys, values, False)
    return {**tensors, **added}, problems


def warn_of_split_latents(gguf, claimed: list[Any]) -> None:
    """Warns about quantised keys that are dequantised because blocks cannot be transposed.

    Args:
        gguf: The file.
        claimed: The tensors that are loaded into variables.
    """
    keys = [one for one in claimed if isinstance(one, HeadRows) and one.transposed]
    dequantized = [one for one in keys if one.whole.format.is_quantized]
    if dequantized:
        size = sum(4 * math.prod(one.shape) for one in dequantized) / 1e6
        warnings.warn(
            f"{gguf.path}: the keys' part of attn_kv_b, which converters wrote before April 2025,"
            f" is dequantised in {len(dequantized)} layers, {size:.1f} MB in F32: convert the model"
            " again to keep it packed",
            stacklevel=6,
        )
