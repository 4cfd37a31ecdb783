"""Matrices in "groups" layout: planes of words, which the kernels of `pallas_kernels` read.

Blocks are repacked once, at load, as the format's `packing` declares. The planes are those of
`pallas_kernels.packing` and hold the same numbers as the blocks, so `join` restores the file's
bytes. The 6-bit scales of some types become bytes, at most 4 % more memory. Types whose codes are
entries of a large codebook, or base-3 digits, have no packing and stay in "rows".
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.dequantize import reference
from pallas_kernels.packing import GROUP, Packing, pack_codes, unpack_codes
from rocmforge_jax.formats import FORMATS, Format
from rocmforge_jax.formats._bits import pack, unpack
from rocmforge_jax.formats.packing import exchange
from rocmforge_jax.formats.scales import SCHEMES, halves, pair


def can_hold(fmt: Format) -> bool:
    """Whether a type has this layout."""
    return fmt.packing is not None


def packing(fmt: Format) -> Packing:
    """The kernels' description of a type's planes, from its declaration."""
    how = fmt.declared_packing
    return Packing(
        how.bits,
        offset=how.offset,
        table=how.kernel_table,
        scale=how.scale,
        halves=how.halves,
        span=fmt.block // GROUP if how.d else 1,
        minimum=how.m is not None,
    )


def packings() -> list[Packing]:
    """The packings of all formats, each once."""
    return list(dict.fromkeys(packing(fmt) for fmt in FORMATS.values() if can_hold(fmt)))


def split(fields, fmt: Format):
    """Repacks blocks: {field: [..., N, blocks, *field]} -> planes. Traceable."""
    how, codes = fmt.declared_packing, _codes(fields, fmt)
    groups = codes.reshape(*codes.shape[:-2], -1, GROUP)
    planes = {"codes": pack_codes(groups, how.bits)}
    if how.d is not None:
        d = fields[how.d]
        planes["d"] = d if how.m is None else pair(d, fields[how.m], jnp.uint32)
    if how.scheme is not None:
        lead = codes.shape[:-1]
        scales = SCHEMES[how.scheme].unpack(*(fields[f].reshape(*lead, -1) for f in how.scales))
        by_group = scales.reshape(*lead[:-1], -1, how.halves)
        planes["scale"] = jnp.swapaxes(by_group, -1, -2)
    return planes


def join(planes, fmt: Format):
    """The inverse of `split`."""
    how, fields = fmt.declared_packing, {}
    groups = unpack_codes(planes["codes"], how.bits)
    codes = groups.reshape(*groups.shape[:-2], -1, fmt.block)
    if how.m is not None:
        fields[how.d], fields[how.m] = halves(planes["d"], jnp.float16)
    elif how.d is not None:
        fields[how.d] = planes["d"]
    if how.scheme is not None:
        scales = jnp.swapaxes(planes["scale"], -1, -2).reshape(*codes.shape[:-1], -1)
        fields |= zip(how.scales, SCHEMES[how.scheme].pack(scales))
    fields |= _fields_of_codes(codes, fmt)
    shapes = {field.name: (*codes.shape[:-1], *field.shape) for field in fmt.fields}
    return {name: fields[name].reshape(shape) for name, shape in shapes.items()}


def stored_shape(planes) -> tuple[int, ...]:
    """The shape (..., N, K) of the matrix."""
    *lead, rows, _, groups = planes["codes"].shape
    return (*lead, rows, groups * GROUP)


def padding_of(groups: int) -> int:
    """Returns how many groups to append to rows of `groups` groups so that they are aligned.

    Words of a row then begin at a multiple of 32 bytes, or at least of 16. No groups are appended
    to rows that begin at multiples of 16 bytes, or if they would take more than MOST_PADDING. Rows
    of types whose groups share scales have a multiple of 8 groups.
    """
    if groups % 4 == 0:
        return 0
    fitting = (-groups % unit for unit in (8, 4))
    return next((more for more in fitting if more <= MOST_PADDING * groups), 0)


#: The largest share of memory that padding may take.
MOST_PADDING = 0.07


def with_padding(planes, groups: int):
    """Appends groups of zeros to each row of a type whose groups share no entries of planes."""

    def padded(plane):
        return jnp.pad(plane, [(0, 0)] * (plane.ndim - 1) + [(0, groups)])

    return {name: padded(plane) for name, plane in planes.items()}


def without_padding(planes, groups: int):
    """The inverse of `with_padding`."""
    return {name: plane[..., :-groups] for name, plane in planes.items()} if groups else planes


def take_rows(planes, ids):
    """Returns the planes of some rows of a matrix [N, K]."""
    return {name: jnp.take(plane, ids, axis=0, mode="clip") for name, plane in planes.items()}


def decode(planes, fmt: Format):
    """Decodes planes to float32 values [..., N, K]."""
    return reference.dequantize(planes, packing(fmt))


def _codes(fields, fmt):
    """Returns the codes as the kernels read them, uint8 [..., N, blocks, block]."""
    how, parts, low = fmt.declared_packing, [], 0
    for name, bits, run in how.codes:
        parts.append(_unpacked(fields[name], _field(fmt, name), bits, run) << low)
        low += bits
    codes = functools.reduce(jnp.bitwise_or, parts)
    return exchange(codes) if how.exchanged else codes


def _fields_of_codes(codes, fmt):
    """The inverse of `_codes`."""
    how, fields = fmt.declared_packing, {}
    codes = exchange(codes) if how.exchanged else codes
    for name, bits, run in how.codes:
        fields[name] = _packed(codes & (2**bits - 1), _field(fmt, name), bits, run)
        codes >>= bits
    return fields


def _field(fmt, name):
    return next(field for field in fmt.fields if field.name == name)


def _unpacked(plane, field, bits, run):
    """Unpacks the codes' bits that one field stores: [..., *field] -> uint8 [..., block].

    `bits` and `run` are described at `formats._bits.unpack`.
    """
    if bits == 8:
        return jax.lax.bitcast_convert_type(plane, jnp.uint8)
    lead = plane.shape[: plane.ndim - len(field.shape)]
    return unpack(plane.reshape(*lead, -1), bits, run).astype(jnp.uint8)


def _packed(codes, field, bits, run):
    """The inverse of `_unpacked`; returns [..., words of the field]."""
    if bits == 8:
        return jax.lax.bitcast_convert_type(codes, field.dtype)
    return pack(codes, bits, run, field.dtype)
