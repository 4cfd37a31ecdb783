"""Names and shapes of tensors as in the file that a model came from."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.export.weights import Weight
from rocmforge_jax.formats import Format
from rocmforge_jax.models import Source
from rocmforge_jax.models.joined import JOINED, without_ones

#: Architecture -> ends of the names that its files write without the last part.
_WITHOUT_SUFFIX = {
    "falcon-h1": ("ffn_norm.weight",),
    "hy_v3": ("exp_probs_b.bias",),
    "plamo3": ("post_attention_norm.weight", "post_ffw_norm.weight"),
}
#: Architectures whose files have attn_kv_b alone, not attn_k_b and attn_v_b.
_WHOLE_LATENTS = ("minicpm3", "plm")


def named_as_in(
    source: Source | None, tensors: Mapping[str, Weight], architecture: str
) -> dict[str, Any]:
    """Gives tensors the names and shapes that they have in the source.

    A file may lack the last part of a name, have dimensions of 1 more, hold a vector in several
    tensors, and the keys and values of latent attention in one.

    Args:
        source: The parts of the file that the model came from, or None.
        tensors: The tensors by the names that `tensor_name` gives them.
        architecture: The family of the model.
    """
    shapes = {} if source is None else source.shapes
    short_ends = tuple(f".{end}" for end in _WITHOUT_SUFFIX.get(architecture, ()))
    named: dict[str, Any] = {}
    for name, weight in tensors.items():
        short = name.rpartition(".")[0]
        is_short = short in shapes if shapes else name.endswith(short_ends)
        known = short if is_short and name not in shapes else name
        shape = shapes.get(known)
        if shape is not None and without_ones(shape) == without_ones(weight.file_shape):
            weight = dataclasses.replace(weight, file_shape=shape)
        parts = [] if shape is not None else _parts(known, shapes)
        if parts:
            named |= _split(weight, parts, shapes)
        else:
            named[known] = weight
    return _with_whole_latents(named, shapes, not shapes and architecture in _WHOLE_LATENTS)


def _with_whole_latents(named: dict[str, Any], shapes, every: bool) -> dict[str, Any]:
    """Joins attn_k_b and attn_v_b of layers whose source has attn_kv_b, or of every layer."""
    for name in [name for name in named if name.endswith(".attn_k_b.weight")]:
        whole, of_values = (name.replace("attn_k_b", part) for part in ("attn_kv_b", "attn_v_b"))
        if (every or whole in shapes and name not in shapes) and of_values in named:
            named[whole] = _Latents(named.pop(name), named.pop(of_values))
    return named


def _parts(name: str, shapes) -> list[str]:
    """Returns the names of the tensors that hold a vector together in a file, or none."""
    layer, _, of_layer = name.rpartition(".attn_")
    parts = [f"{layer}.{part}" for part in JOINED.get(f"attn_{of_layer}", ())]
    return parts if all(part in shapes for part in parts) else []


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some elements of a vector, with the attributes of a `Weight`."""

    whole: Weight
    start: int
    file_shape: tuple[int, ...]

    dtype = Weight.dtype
    offset = 0

    @property
    def format(self):
        return self.whole.format

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.format.row_bytes(self.file_shape[-1]),)

    @property
    def nbytes(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        start = self.format.row_bytes(self.start)
        return np.asarray(self.whole)[start : start + self.nbytes]


def _split(weight: Weight, names: list[str], shapes) -> dict[str, Any]:
    found, start = {}, 0
    for name in names:
        size = shapes[name][-1]
        found[name] = _Part(weight, start, (size,))
        start += size
    return found


@dataclasses.dataclass(frozen=True)
class _Latents:
    """attn_kv_b, with the attributes of a `Weight`: each head's keys, then its values.

    Where the types of the two parts differ, it is F32: loading has dequantised the keys.
    """

    keys: Weight
    of_values: Weight

    dtype = Weight.dtype
    offset = 0

    @property
    def format(self) -> Format:
        formats_of_parts = {self.keys.format, self.of_values.format}
        return self.keys.format if len(formats_of_parts) == 1 else formats.get("F32")

    @property
    def file_shape(self) -> tuple[int, ...]:
        heads, rank, width = self.keys.file_shape
        return (heads * (width + self.of_values.file_shape[1]), rank)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.file_shape[0], self.format.row_bytes(self.file_shape[1]))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        parts = np.swapaxes(self.keys.values(), -1, -2), self.of_values.values()
        rows = np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)
        return formats.quantize(rows.reshape(self.file_shape), self.format)
