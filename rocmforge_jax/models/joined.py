"""Vectors that are one parameter of a module but several tensors of a file."""

import dataclasses

import numpy as np

from rocmforge_jax.formats import Format
from rocmforge_jax.gguf import TensorInfo

#: Name of a joined vector -> the tensors of a layer that contain its parts.
JOINED = {"attn_qkv.bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias")}


@dataclasses.dataclass(frozen=True)
class Joined:
    """The concatenation of several vectors of a file, with the attributes of a TensorInfo."""

    parts: tuple[TensorInfo, ...]
    shape: tuple[int, ...]
    format: Format
    offset: int
    nbytes: int

    @property
    def data(self) -> np.ndarray:
        """The bytes of all parts."""
        return np.concatenate([part.data.ravel() for part in self.parts])

    def forget(self) -> None:
        """Releases the pages of the mapped file that reading `data` brought into memory."""
        for part in self.parts:
            part.forget()


def joined(tensors, name: str) -> Joined | None:
    """Returns the joined vector with this name, or None if the file does not have all its parts."""
    layer, _, of_layer = name.rpartition(".attn_")
    parts = [tensors.get(f"{layer}.{part}") for part in JOINED.get(f"attn_{of_layer}", ())]
    return _join(parts) if parts and None not in parts else None


def _join(parts) -> Joined | None:
    """Joins vectors; returns None unless they have the same type, which must not be quantised."""
    shapes, types = [without_ones(part.shape) for part in parts], {part.format for part in parts}
    if any(len(shape) > 1 for shape in shapes) or len(types) > 1 or parts[0].format.is_quantized:
        return None
    return Joined(
        tuple(parts),
        shape=(sum(shape[0] for shape in shapes),),
        format=parts[0].format,
        offset=parts[0].offset,
        nbytes=sum(part.nbytes for part in parts),
    )


def without_ones(shape) -> tuple[int, ...]:
    """Returns a shape without dimensions of size 1, which do not affect the order in memory."""
    return tuple(size for size in shape if size != 1) or (1,)
