"""Declares block formats: the fields of one block in file order, and their meaning.

A declaration describes ONE block. `affine` (or `decode`, for blocks that are not a scaled grid)
accepts the block's fields by their names in ggml's C structs. `jax.vmap` vectorises it over the
axes of the planes. So it never sees a batch axis and does not depend on the planes' layout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes  # noqa: F401  registers the dtype "bfloat16" with NumPy
import numpy as np

from rocmforge_jax.formats._lazy import jax, jnp
from rocmforge_jax.formats.packing import WordPacking

if TYPE_CHECKING:
    from jax import Array


@dataclass(frozen=True)
class Field:
    """One member of a block's C struct.

    Attributes:
        name: The member's name in ggml's C struct.
        dtype: The name of a NumPy dtype; the file stores it little endian.
        shape: () for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of the field in a block, in bytes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def plane(self) -> tuple[np.dtype, tuple[int, ...]]:
        """The dtype and the shape on the device.

        64-bit members become pairs of uint32, low word first, because JAX without x64 has no 64-bit
        types.
        """
        dtype = np.dtype(self.dtype)
        return (
            (np.dtype("uint32"), (*self.shape, 2)) if dtype.itemsize == 8 else (dtype, self.shape)
        )


def u8(name: str, *shape: int) -> Field:
    """Returns a field of unsigned bytes."""
    return Field(name, "uint8", shape)


class Affine(NamedTuple):
    """The values of one block as `codes * scale + bias`.

    Both products are exact in float32 (a float16 times small integers). So each value is rounded at
    most once and equals ggml's bit for bit, even if the compiler uses a fused multiply-add.

    Attributes:
        codes: int8 [block].
        scale: float32, a scalar for the whole block, or [groups] for runs of equal length.
        bias: Like `scale`; None means zero.
    """

    codes: "Array"
    scale: "Array"
    bias: "Array | None" = None

    def values(self):
        """Returns the values, float32 [block]."""

        def column(a):
            return jnp.reshape(a, (-1, 1))

        values = jnp.reshape(self.codes, (self.scale.size, -1)).astype(jnp.float32) * column(
            self.scale
        )
        if self.bias is not None:
            values = values + column(self.bias)
        return jnp.reshape(values, (-1,))


@dataclass(frozen=True)
class Format:
    """A ggml type, or a format outside GGUF (with ggml_id None).

    Attributes:
        name: ggml's name in capitals, such as "Q5_1".
        ggml_id: The type's id in GGUF files, or None.
        block: The number of elements in a block.
        fields: The fields of a block in file order, without padding.
        affine: The fields of one block -> Affine; None if the codes do not fit int8.
        decode: The fields of one block -> values [block]. Needed without `affine`, or if its
            product could overflow or be flushed to zero. If both exist, `values` uses `decode` and
            matrix products use `affine`.
        packing: How kernels read the blocks; None if they do not support the format.
        note: One line for docs/formats.md.
    """

    name: str
    ggml_id: int | None
    block: int
    fields: tuple[Field, ...]
    affine: Callable[..., Affine] | None = None
    decode: Callable | None = None
    packing: WordPacking | None = None
    note: str = ""

    def __post_init__(self):
        if self.affine is None and self.decode is None:
            raise ValueError(f"{self.name}: give affine, decode or both")
        if self.packing is not None:
            self.packing.check(self.name, self.block, self.fields)

    def __str__(self):
        return self.name

    @property
    def block_bytes(self) -> int:
        """The size of a block in bytes."""
        return sum(field.nbytes for field in self.fields)

    @property
    def is_quantized(self) -> bool:
        """Whether a block has several elements, unlike in plain formats."""
        return self.block > 1

    @property
    def bits_per_element(self) -> float:
        """The number of bits per element, including its share of the scales."""
        return 8 * self.block_bytes / self.block

    @property
    def declared_packing(self) -> WordPacking:
        """The packing; raises NotImplementedError if there is none."""
        if self.packing is None:
            raise NotImplementedError(f"the declaration of {self} has no packing for kernels")
        return self.packing

    def row_bytes(self, elements: int) -> int:
        """Returns the size of a row of `elements` values, in bytes.

        Raises:
            ValueError: The row is not a whole number of blocks.
        """
        if elements % self.block:
            raise ValueError(
                f"a {self.name} row is whole blocks of {self.block} elements, got {elements}"
            )
        return elements // self.block * self.block_bytes

    def row_blocks(self, nbytes: int) -> int:
        """Returns the number of blocks in a row of `nbytes` bytes.

        Raises:
            ValueError: The row is not a whole number of blocks.
        """
        if nbytes % self.block_bytes:
            raise ValueError(
                f"a {self.name} row is whole blocks of {self.block_bytes} bytes, got {nbytes} bytes"
            )
        return nbytes // self.block_bytes

    def values(self, **fields):
        """Returns the values of ONE block, [block].

        Plain types of up to 32 bits keep the field's dtype; all others become float32.
        """
        if self.decode is not None:
            return self.decode(**fields)
        assert self.affine is not None  # __post_init__ refuses a format with neither
        return self.affine(**fields).values()

    def split(self, blocks):
        """Splits uint8 [..., block_bytes] into {field name: plane [..., *shape]}.

        `field.plane` is the dtype and the shape of a plane. Can be traced; copies nothing on the
        host.
        """
        if blocks.dtype != jnp.uint8 or blocks.ndim < 1 or blocks.shape[-1] != self.block_bytes:
            raise ValueError(
                f"{self.name} blocks are uint8 [..., {self.block_bytes}], got {blocks.dtype}"
                f" {list(blocks.shape)}"
            )
        planes, start = {}, 0
        for field in self.fields:
            part = blocks[..., start : start + field.nbytes]
            start += field.nbytes
            planes[field.name] = _from_bytes(part, field)
        return planes

    def join(self, planes):
        """Inverts `split`: planes -> uint8 [..., block_bytes]."""
        names = {field.name for field in self.fields}
        if set(planes) != names:
            raise ValueError(f"{self.name} has the planes {sorted(names)}, got {sorted(planes)}")
        return jnp.concatenate(
            [self._to_bytes(planes[field.name], field) for field in self.fields], axis=-1
        )

    def _to_bytes(self, plane, field):
        dtype, shape = field.plane
        lead = plane.shape[: plane.ndim - len(shape)]
        if plane.dtype != dtype or plane.shape != (*lead, *shape):
            expected = ", ".join(map(str, ("...", *shape)))
            raise ValueError(
                f"{self.name}.{field.name} is {dtype} [{expected}], got {plane.dtype}"
                f" {list(plane.shape)}"
            )
        return jax.lax.bitcast_convert_type(plane, jnp.uint8).reshape(*lead, field.nbytes)


def _from_bytes(part, field):
    lead, (dtype, shape) = part.shape[:-1], field.plane
    if dtype.itemsize > 1:
        part = part.reshape(*lead, field.nbytes // dtype.itemsize, dtype.itemsize)
    return jax.lax.bitcast_convert_type(part, dtype).reshape(*lead, *shape)
