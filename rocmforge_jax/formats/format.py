"""What a block format is: the fields of one block in file order, and what they mean.

A declaration describes ONE block. `affine` (or `decode`, where a block is no scaled grid) takes the block's fields by
their names in ggml's C structs and is vectorised with `jax.vmap` over whatever axes the planes have, so it never sees
a batch axis and does not know how the planes are laid out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rocmforge_jax.formats._lazy import jax, jnp


@dataclass(frozen=True)
class Field:
    """One member of a block's C struct: `dtype` is little endian in the file, `shape` is () for a scalar."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class Affine(NamedTuple):
    """The values of one block as `codes * scale + bias`.

    codes: int8 [block]. scale, bias: float32, a scalar for the whole block or [groups] for equal runs of elements in
    order; bias None means zero. Both products are exact in float32 (an f16 times small integers), so each value is
    rounded at most once and equals ggml's to the bit, also when the compiler contracts it to a fused multiply-add.
    """

    codes: "jax.Array"
    scale: "jax.Array"
    bias: "jax.Array | None" = None

    def values(self):
        """float32 [block]."""
        column = lambda a: jnp.reshape(a, (-1, 1))
        values = jnp.reshape(self.codes, (self.scale.size, -1)).astype(jnp.float32) * column(self.scale)
        if self.bias is not None:
            values = values + column(self.bias)
        return jnp.reshape(values, (-1,))


@dataclass(frozen=True)
class Format:
    """A ggml type (or, with ggml_id None, a format outside GGUF).

    name: ggml's name in capitals, "Q5_1". block: elements per block. fields: in file order, without padding.
    affine: the fields of one block -> Affine. decode: the fields of one block -> values [block], for formats that are
    no scaled grid; exactly one of the two is given. note: one line for docs/formats.md.
    """

    name: str
    ggml_id: int | None
    block: int
    fields: tuple[Field, ...]
    affine: Callable[..., Affine] | None = None
    decode: Callable | None = None
    note: str = ""

    def __post_init__(self):
        if (self.affine is None) == (self.decode is None):
            raise ValueError(f"{self.name}: give exactly one of affine and decode")

    def __str__(self):
        return self.name

    @property
    def block_bytes(self) -> int:
        return sum(field.nbytes for field in self.fields)

    @property
    def is_quantized(self) -> bool:
        return self.block > 1

    @property
    def bits_per_element(self) -> float:
        return 8 * self.block_bytes / self.block

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of `elements` values; a row is whole blocks (ValueError)."""
        if elements % self.block:
            raise ValueError(f"a {self.name} row is whole blocks of {self.block} elements, got {elements}")
        return elements // self.block * self.block_bytes

    def values(self, **fields):
        """The values of ONE block: float32 [block] for block formats, the field's own dtype otherwise."""
        return self.decode(**fields) if self.affine is None else self.affine(**fields).values()

    def split(self, blocks):
        """uint8 [..., block_bytes] -> {field name: [..., *field.shape]} in the field's dtype. Traceable; no copy on the host."""
        if blocks.dtype != jnp.uint8 or blocks.ndim < 1 or blocks.shape[-1] != self.block_bytes:
            raise ValueError(f"{self.name} blocks are uint8 [..., {self.block_bytes}], got {blocks.dtype} {list(blocks.shape)}")
        planes, start = {}, 0
        for field in self.fields:
            part = blocks[..., start : start + field.nbytes]
            start += field.nbytes
            planes[field.name] = _from_bytes(part, field)
        return planes

    def join(self, planes):
        """The inverse of `split`: planes -> uint8 [..., block_bytes]."""
        names = {field.name for field in self.fields}
        if set(planes) != names:
            raise ValueError(f"{self.name} has the planes {sorted(names)}, got {sorted(planes)}")
        return jnp.concatenate([_to_bytes(planes[field.name], field) for field in self.fields], axis=-1)


def _from_bytes(part, field):
    lead, dtype = part.shape[:-1], np.dtype(field.dtype)
    if dtype.itemsize > 1:
        part = part.reshape(*lead, -1, dtype.itemsize)
    return jax.lax.bitcast_convert_type(part, dtype).reshape(*lead, *field.shape)


def _to_bytes(plane, field):
    lead = plane.shape[: plane.ndim - len(field.shape)]
    return jax.lax.bitcast_convert_type(plane, jnp.uint8).reshape(*lead, field.nbytes)
