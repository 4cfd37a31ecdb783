"""Describes how kernels read a format: which fields hold the codes, and which the scales.

A `WordPacking` is plain data and part of a format's declaration. `quant.word_packed` converts it to
planes and to the kernels' own description, `pallas_kernels.packing.Packing`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rocmforge_jax.formats.scales import SCHEMES

#: The number of elements whose codes kernels read together. Blocks are multiples of it.
GROUP = 32


class Kind(NamedTuple):
    """The properties of a kind of scale.

    Attributes:
        dtype: The dtype of the groups' scales; None if groups have no scales.
        d: Whether a block has a float16 scale.
        m: Whether a block has a float16 minimum; None if it may have one.
    """

    dtype: str | None
    d: bool
    m: bool | None


#: The kinds of scales of `pallas_kernels.packing.Packing`.
KINDS = {
    "d": Kind(None, d=True, m=None),
    "int8": Kind("int8", d=True, m=False),
    "nibbles": Kind("uint8", d=True, m=True),
    "bytes": Kind("uint16", d=True, m=True),
    "e8m0": Kind("uint8", d=False, m=False),
    "e4m3": Kind("uint8", d=False, m=False),
}


class Codes(NamedTuple):
    """A field with `bits` bits of each code, in runs as in `_bits.unpack`."""

    field: str
    bits: int
    run: int


@dataclass(frozen=True)
class WordPacking:
    """How the blocks of a format are converted to words of codes and planes of scales.

    The value of an element is `((table[code] or code) - offset) * scale + minimum`.

    Attributes:
        codes: The fields with the codes, lowest bits first. Codes have 1 to 6 or 8 bits; 8-bit
            codes are signed.
        offset: A number subtracted from each code or table entry.
        table: The value of each 4-bit code, a signed byte; None if codes are values.
        d: The field with the block's float16 scale; None if only groups have scales.
        m: The field with the block's float16 minimum; None without minima. If groups have minima,
            this is their scale: the minimum of a group is -m times its own.
        scales: The fields with the scales of the block's groups; empty if only `d` scales.
        scheme: How those fields store the scales, a name in `scales.SCHEMES`; None without them.
        scale: The kind of scale. "d": d itself. "int8": d times signed bytes. "nibbles", "bytes": d
            times the lower half of bytes or of pairs of bytes, whose upper half is the minimum.
            "e8m0": 2^(e - 128), without d. "e4m3": half an unsigned E4M3 float, without d.
        halves: The number of scales per 32 elements, 1 or 2.
    """

    codes: tuple[Codes, ...]
    offset: int = 0
    table: tuple[int, ...] | None = None
    d: str | None = "d"
    m: str | None = None
    scales: tuple[str, ...] = ()
    scheme: str | None = None
    scale: str = "d"
    halves: int = 1

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return sum(codes.bits for codes in self.codes)

    def planes(self) -> dict[str, str]:
        """Returns the dtype of each plane, by name: those of `pallas_kernels.packing.Packing`."""
        planes, dtype = {"codes": "uint32"}, KINDS[self.scale].dtype
        if self.d is not None:
            planes["d"] = "float16" if self.m is None else "uint32"
        if dtype is not None:
            planes["scale"] = dtype
        return planes

    @property
    def exchanged(self) -> bool:
        """Whether bits 2 and 3 of each code are exchanged.

        Kernels look up entries i and i + 8 of a table at once, which must have the same sign. The
        exchange achieves this for tables in ascending order with negative numbers first.
        """
        return self.table is not None and not _signs_agree(self.table)

    @property
    def kernel_table(self) -> tuple[int, ...] | None:
        """The table indexed by the codes that kernels read, so after the exchange."""
        if self.table is None or not self.exchanged:
            return self.table
        return tuple(self.table[exchange(code)] for code in range(16))

    def check(self, name: str, block: int, fields: Iterable) -> None:
        """Raises a ValueError that lists every contradiction to a format's block and fields."""
        if problems := list(_problems(self, block, {field.name: field for field in fields})):
            raise ValueError(f"the packing of {name}: {'; '.join(problems)}")


def exchange(codes):
    """Exchanges bits 2 and 3 of 4-bit codes, which are integers or integer arrays."""
    return (codes & 3) | ((codes & 4) << 1) | ((codes & 8) >> 1)


def _signs_agree(table) -> bool:
    return all((low < 0) == (high < 0) for low, high in zip(table[:8], table[8:]))


def _problems(how: WordPacking, block: int, fields: dict) -> Iterator[str]:
    if block % GROUP:
        yield f"a block has {block} elements, not a multiple of {GROUP}"
    if how.bits not in (1, 2, 3, 4, 5, 6, 8):
        yield f"codes have {how.bits} bits, not 1 to 6 or 8"
    if how.table is not None:
        yield from _problems_of_table(how)
    yield from _problems_of_kind(how)
    used = [*(codes.field for codes in how.codes), *filter(None, (how.d, how.m)), *how.scales]
    if sorted(used) != sorted(fields):
        yield f"it uses the fields {sorted(used)}, the block has {sorted(fields)}"
    else:
        yield from _problems_of_fields(how, block, fields)


def _problems_of_table(how):
    if how.bits != 4 or len(how.table) != 16:
        yield f"its table has {len(how.table)} entries for {how.bits}-bit codes, not 16 for 4"
    elif not _signs_agree(how.kernel_table):
        yield "entries i and i + 8 of its table differ in sign, with bits exchanged or not"


def _problems_of_kind(how):
    if how.scheme not in (None, *SCHEMES):
        yield f"no scheme of scales is named {how.scheme!r}; there are {', '.join(SCHEMES)}"
    if how.halves not in (1, 2):
        yield f"32 elements have 1 or 2 scales, not {how.halves}"
    if how.scale not in KINDS:
        yield f"no scale is named {how.scale!r}; there are {', '.join(KINDS)}"
        return
    kind = KINDS[how.scale]
    if not (kind.dtype is None) == (how.scheme is None) == (not how.scales):
        yield (
            f"scale {how.scale!r}, scheme {how.scheme!r} and scale fields {list(how.scales)} do"
            " not go together"
        )
    for field, found, needed in (("d", how.d, kind.d), ("m", how.m, kind.m)):
        if needed is not None and (found is not None) != needed:
            yield f"scale {how.scale!r} {'needs' if needed else 'has no'} {field}"


def _problems_of_fields(how, block, fields):
    for codes in how.codes:
        bits = 8 * fields[codes.field].nbytes
        if bits != codes.bits * block:
            yield f"{codes.field} has {bits} bits, {block} codes have {codes.bits * block}"
    for field in (fields[name] for name in (how.d, how.m) if name):
        if (field.dtype, field.shape) != ("float16", ()):
            yield f"{field.name} is {field.dtype}{list(field.shape)}, not one float16"
    if how.scheme in SCHEMES and how.scale in KINDS and how.scales:
        scheme = SCHEMES[how.scheme]
        found = scheme.groups or sum(fields[name].nbytes for name in how.scales)
        dtype = scheme.dtype or fields[how.scales[0]].dtype
        needed = block // GROUP * how.halves
        if (found, dtype) != (needed, KINDS[how.scale].dtype):
            yield (
                f"its fields hold {found} scales of {dtype}, the block has {needed} of"
                f" {KINDS[how.scale].dtype}"
            )
