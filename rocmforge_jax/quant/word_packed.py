"""Matrices in "groups" layout: repacked once, at load, so that the kernels of `pallas_kernels` read
them word by word.

The planes are those of `pallas_kernels.packing`. They hold the same numbers as the file's blocks,
so `join` gives the file's bytes again; the 6-bit scales of some K-quants become bytes, at most 4 %
more memory. Types whose codes are entries of a large codebook, or base-3 digits, have no such form
and stay in "rows".
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dequantize import reference
from pallas_kernels.packing import GROUP, Packing, pack_codes, unpack_codes
from rocmforge_jax.formats import Format
from rocmforge_jax.formats._bits import unpack
from rocmforge_jax.formats.iq import IQ4_VALUES

#: Twice the values of E2M1, plus 12.
_E2M1 = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)


@dataclasses.dataclass(frozen=True)
class Repacking:
    """How the blocks of a type become groups.

    codes: (field, bits, run) as `formats._bits.unpack` takes them, the lowest bits first.
    exchanged: whether bits 2 and 3 of a code of four bits change places, so that a table's entries
    i and i + 8 have one sign. scales: the other fields, [..., N, blocks, *field], -> the other
    planes, d [..., N, blocks] and scale [..., N, blocks, scales of a block]; fields: the inverse.
    """

    packing: Packing
    codes: tuple[tuple[str, int, int], ...]
    scales: Callable
    fields: Callable
    exchanged: bool = False


def can_hold(fmt: Format) -> bool:
    """Whether a type has this layout."""
    return fmt.name in _REPACKINGS


def packing(fmt: Format) -> Packing:
    return repacking(fmt).packing


def repacking(fmt: Format) -> Repacking:
    return _REPACKINGS[fmt.name]


def packings() -> list[Packing]:
    """All that there are, each once."""
    return list(dict.fromkeys(how.packing for how in _REPACKINGS.values()))


def split(fields, fmt: Format):
    """{field: [..., N, blocks, *field]} -> planes. Traceable."""
    how = _REPACKINGS[fmt.name]
    rest, codes, low = dict(fields), 0, 0
    for name, bits, run in how.codes:
        codes |= _unpacked(rest.pop(name), _field(fmt, name), bits, run) << low
        low += bits
    if how.exchanged:
        codes = _exchange(codes)
    groups = codes.reshape(*codes.shape[:-2], -1, GROUP)

    def by_group(plane):
        return jnp.swapaxes(plane.reshape(*plane.shape[:-2], -1, how.packing.halves), -1, -2)

    scales = {
        name: plane if name == "d" else by_group(plane)
        for name, plane in how.scales(**rest).items()
    }
    return {"codes": pack_codes(groups, how.packing.bits)} | scales


def join(planes, fmt: Format):
    """The inverse of `split`."""
    how, rest = _REPACKINGS[fmt.name], dict(planes)
    groups = unpack_codes(rest.pop("codes"), how.packing.bits)
    codes = groups.reshape(*groups.shape[:-2], -1, fmt.block)
    if how.exchanged:
        codes = _exchange(codes)

    def by_block(plane):
        return jnp.swapaxes(plane, -1, -2).reshape(*codes.shape[:-1], -1)

    fields = how.fields(
        **{name: plane if name == "d" else by_block(plane) for name, plane in rest.items()}
    )
    for name, bits, run in how.codes:
        fields[name] = _packed(codes & (2**bits - 1), _field(fmt, name), bits, run)
        codes >>= bits
    return fields


def stored_shape(planes) -> tuple[int, ...]:
    """(..., N, K)."""
    *lead, rows, _, groups = planes["codes"].shape
    return (*lead, rows, groups * GROUP)


def take_rows(planes, ids):
    """The planes of some rows of a matrix [N, K]."""
    return {name: jnp.take(plane, ids, axis=0, mode="clip") for name, plane in planes.items()}


def decode(planes, fmt: Format):
    """Planes of [..., N, K] -> values in float32."""
    return reference.dequantize(planes, packing(fmt))


def _exchange(codes):
    """Bits 2 and 3 of codes of four bits change places."""
    return (codes & 3) | ((codes & 4) << 1) | ((codes & 8) >> 1)


def _field(fmt, name):
    return next(field for field in fmt.fields if field.name == name)


def _unpacked(plane, field, bits, run):
    """[..., blocks, *field] -> uint8 codes [..., blocks, block]."""
    if bits == 8:
        return jax.lax.bitcast_convert_type(plane, jnp.uint8)
    lead = plane.shape[: plane.ndim - len(field.shape)]
    codes = jax.vmap(functools.partial(unpack, bits=bits, run=run))(
        plane.reshape(-1, math.prod(field.shape))
    )
    return codes.astype(jnp.uint8).reshape(*lead, -1)


def _packed(codes, field, bits, run):
    """The inverse of `_unpacked`."""
    if bits == 8:
        return jax.lax.bitcast_convert_type(codes, field.dtype)
    dtype = np.dtype(field.dtype)
    shifts = jnp.arange(0, 8 * dtype.itemsize, bits, dtype=dtype)
    words = codes.reshape(*codes.shape[:-1], -1, len(shifts), run).astype(dtype)
    words = words << shifts.reshape(*[1] * (words.ndim - 2), -1, 1)
    return words.sum(axis=-2, dtype=dtype).reshape(*codes.shape[:-1], *field.shape)


def _same(**fields):
    return fields


def _entry(name):
    """Scales of one field under the name of a plane, and back."""
    return (
        lambda **fields: {"scale": fields.pop(name)} | fields,
        lambda scale, **rest: {name: scale} | rest,
    )


def _pair(low, high, dtype):
    """Two arrays as the halves of unsigned words."""
    return jax.lax.bitcast_convert_type(jnp.stack([low, high], axis=-1), dtype)


def _of_pair(pair, dtype):
    both = jax.lax.bitcast_convert_type(pair, dtype)
    return both[..., 0], both[..., 1]


def _with_minimum(d, m):
    return {"d": _pair(d, m, jnp.uint32)}


def _without_minimum(d):
    return dict(zip(("d", "m"), _of_pair(d, jnp.float16)))


def _nibble_pairs(scales, d, dmin):
    return {"scale": scales} | _with_minimum(d, dmin)


def _nibble_pairs_packed(scale, d):
    d, dmin = _of_pair(d, jnp.float16)
    return {"scales": scale, "d": d, "dmin": dmin}


def _six_bit_pairs(scales, d, dmin):
    """uint8 [..., 12] -> scales and minima, uint16 [..., 8]: see `formats.k_quants`."""
    low, mid, rest = jnp.split(scales, 3, axis=-1)

    def six_bits(part, nibble):
        return jnp.concatenate([part & 63, nibble | ((part >> 6) << 4)], axis=-1)

    return {
        "scale": _pair(six_bits(low, rest & 15), six_bits(mid, rest >> 4), jnp.uint16)
    } | _with_minimum(d, dmin)


def _six_bit_pairs_packed(scale, d):
    (low, high), (low_min, high_min) = (
        jnp.split(part, 2, axis=-1) for part in _of_pair(scale, jnp.uint8)
    )
    parts = (
        low | ((high >> 4) << 6),
        low_min | ((high_min >> 4) << 6),
        (high & 15) | ((high_min & 15) << 4),
    )
    d, dmin = _of_pair(d, jnp.float16)
    return {"scales": jnp.concatenate(parts, axis=-1), "d": d, "dmin": dmin}


def _six_bits(scales, d):
    """uint8 [..., 12] -> int8 [..., 16], -32 to 31: Q3_K."""
    low, high = scales[..., :8], scales[..., 8:]
    nibbles = jnp.concatenate([low & 15, low >> 4], axis=-1)
    tops = jnp.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    return {"scale": (nibbles | (tops << 4)).astype(jnp.int8) - jnp.int8(32), "d": d}


def _six_bits_packed(scale, d):
    six = (scale + jnp.int8(32)).astype(jnp.uint8)
    tops = jnp.split(six >> 4, 4, axis=-1)
    low = (six[..., :8] & 15) | ((six[..., 8:] & 15) << 4)
    return {
        "scales": jnp.concatenate(
            [low, sum(top << (2 * i) for i, top in enumerate(tops))], axis=-1
        ),
        "d": d,
    }


def _high_and_low(scales_h, scales_l, d):
    """uint16 [...], uint8 [..., 4] -> int8 [..., 8], -32 to 31: IQ4_XS."""

    def eight(plane, bits):
        shifts = jnp.arange(0, 8 * plane.dtype.itemsize, bits, dtype=plane.dtype)
        return (plane[..., None] >> shifts.reshape(*[1] * plane.ndim, -1)) & (2**bits - 1)

    low = eight(scales_l, 4).reshape(*scales_l.shape[:-1], 8)
    return {
        "scale": (
            (low | (eight(scales_h, 2).astype(jnp.uint8) << 4)).astype(jnp.int8) - jnp.int8(32)
        ),
        "d": d,
    }


def _high_and_low_packed(scale, d):
    six = (scale + jnp.int8(32)).astype(jnp.uint8)
    high = sum((six[..., i] >> 4).astype(jnp.uint16) << (2 * i) for i in range(8))
    return {
        "scales_h": high,
        "scales_l": (six[..., ::2] & 15) | ((six[..., 1::2] & 15) << 4),
        "d": d,
    }


def _one_per_block(e):
    return {"scale": e[..., None]}


def _one_per_block_packed(scale):
    return {"e": scale[..., 0]}


#: By codes with the bits exchanged.
_IQ4 = tuple(IQ4_VALUES[_exchange(np.arange(16))].tolist())
_NIBBLES = ("qs", 4, 16)
_CRUMBS = ("qs", 2, 32)

_REPACKINGS = {
    "Q4_0": Repacking(Packing(4, offset=8), (_NIBBLES,), _same, _same),
    "Q4_1": Repacking(Packing(4, minimum=True), (_NIBBLES,), _with_minimum, _without_minimum),
    "Q5_0": Repacking(Packing(5, offset=16), (_NIBBLES, ("qh", 1, 1)), _same, _same),
    "Q5_1": Repacking(
        Packing(5, minimum=True), (_NIBBLES, ("qh", 1, 1)), _with_minimum, _without_minimum
    ),
    "Q8_0": Repacking(Packing(8), (("qs", 8, 1),), _same, _same),
    "Q2_K": Repacking(
        Packing(2, scale="nibbles", halves=2, span=8, minimum=True),
        (_CRUMBS,),
        _nibble_pairs,
        _nibble_pairs_packed,
    ),
    "Q3_K": Repacking(
        Packing(3, offset=4, scale="int8", halves=2, span=8),
        (_CRUMBS, ("hmask", 1, 32)),
        _six_bits,
        _six_bits_packed,
    ),
    "Q4_K": Repacking(
        Packing(4, scale="bytes", span=8, minimum=True),
        (("qs", 4, 32),),
        _six_bit_pairs,
        _six_bit_pairs_packed,
    ),
    "Q5_K": Repacking(
        Packing(5, scale="bytes", span=8, minimum=True),
        (("qs", 4, 32), ("qh", 1, 32)),
        _six_bit_pairs,
        _six_bit_pairs_packed,
    ),
    "Q6_K": Repacking(
        Packing(6, offset=32, scale="int8", halves=2, span=8),
        (("ql", 4, 64), ("qh", 2, 32)),
        *_entry("scales"),
    ),
    "IQ4_NL": Repacking(Packing(4, table=_IQ4), (_NIBBLES,), _same, _same, exchanged=True),
    "IQ4_XS": Repacking(
        Packing(4, table=_IQ4, scale="int8", span=8),
        (_NIBBLES,),
        _high_and_low,
        _high_and_low_packed,
        exchanged=True,
    ),
    "MXFP4": Repacking(
        Packing(4, offset=12, table=_E2M1, scale="e8m0"),
        (_NIBBLES,),
        _one_per_block,
        _one_per_block_packed,
    ),
    "NVFP4": Repacking(
        Packing(4, offset=12, table=_E2M1, scale="e4m3", halves=2),
        (("qs", 4, 8),),
        lambda d: {"scale": d},
        lambda scale: {"d": scale},
    ),
    "TQ2_0": Repacking(Packing(2, offset=1, span=8), (_CRUMBS,), _same, _same),
    "Q2_0": Repacking(Packing(2, offset=1, span=2), (("qs", 2, 1),), _same, _same),
}
