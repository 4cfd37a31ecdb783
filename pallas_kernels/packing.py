"""The layout of packed weights in GPU memory.

A group is 32 consecutive inputs of a row. A matrix has N rows of G groups, and is stored as several
arrays, its planes. The minor axis of each plane is the group, so that neighbouring threads read
neighbouring words:

    codes   uint32 [N, bits, G]     the codes of a group take as many words as a code has bits
    d       float16 [N, G / span]   a scale that `span` groups share. With minima: uint32, with d in
                                    the lower half and the minimum m, also float16, in the upper
    scale   8 bits [N, h, G]        small multiples of d, for each half of a group (h = 2) or for
                                    all of it (h = 1). Multiples of m share the byte, or if they do
                                    not fit: uint16, with the multiple of m in the upper byte

The bits of a code are split into powers of two, the highest first. A group of 6-bit codes has four
words with their lower four bits, then two words with their upper two. A position, 0 to 7, is four
consecutive inputs, one in each byte of a word. Low nibbles hold positions 0 to 3, high nibbles hold
positions 4 to 7:

    4 bits, word i: positions i and 4 + i
    2 bits, word i: bits 0 and 1 of the nibbles are positions 2i and 4 + 2i, bits 2 and 3 the next
    1 bit:          bit i of the nibbles is positions i and 4 + i
    8 bits, word i: position i

One shift and one mask therefore extract four codes into the bytes of a word, the format of integer
dot products. For 3-bit codes, one mask combines eight codes at once.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GROUP = 32
#: Positions of a group: words of four codes, one a byte.
POSITIONS = 8


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Packing:
    """The format of the planes of a matrix.

    The value of a code is (number - offset) * scale + minimum, where the number is table[code], or
    the code itself without a table.

    Attributes:
        bits: bits per code, 1 to 6 or 8; 8-bit codes are signed.
        offset: subtracted from each number.
        table: 16 signed bytes or None; entries i and i + 8 have the same sign.
        scale: how scales are stored. "d": in the plane `d`. "int8": as d times the plane `scale`.
            "nibbles" and "bytes": as d times the low nibble or byte of that plane; the high one is
            for the minimum. "e8m0" and "e4m3": in the plane `scale` alone, as 2^(e - 128) or as
            half an unsigned float with 4 exponent and 3 fraction bits.
        halves: scales per group, 1 or 2.
        span: how many groups share d and m.
        minimum: whether there are minima: m, or with "nibbles" and "bytes" -m times the upper part
            of `scale`.
    """

    bits: int
    offset: int = 0
    table: tuple[int, ...] | None = None
    scale: str = "d"
    halves: int = 1
    span: int = 1
    minimum: bool = False

    def planes(self) -> dict[str, str]:
        """Return the dtype of each plane, by name."""
        planes = {"codes": "uint32"}
        if self.scale not in ("e8m0", "e4m3"):
            planes["d"] = "uint32" if self.minimum else "float16"
        if self.scale != "d":
            planes["scale"] = {"int8": "int8", "bytes": "uint16"}.get(self.scale, "uint8")
        return planes


def parts(bits: int) -> list[tuple[int, int, int]]:
    """Split a number of bits into powers of two ("parts"), in descending order.

    Returns:
        For each part: its first word, its number of bits, and its lowest bit within the code.
    """
    parts, first = [], 0
    for part in (8, 4, 2, 1):
        if bits & part:
            parts.append((first, part, first))  # a part of n bits takes n words
            first += part
    return parts


def pack_codes(codes, bits: int):
    """Pack unsigned codes: uint8 [..., G, 32] -> uint32 [..., bits, G]."""
    by_position = jnp.moveaxis(codes.reshape(*codes.shape[:-1], POSITIONS, 4), (-2, -1), (0, 1))
    position_words = sum(by_position[:, byte].astype(jnp.uint32) << (8 * byte) for byte in range(4))
    words = []
    for _, part, low in parts(bits):
        mask = jnp.uint32(((1 << part) - 1) * 0x01010101)
        fields = [((position_words[p] >> low) & mask) for p in range(POSITIONS)]
        words += [sum(fields[p] << shift for p, shift in held) for held in _held(part)]
    return jnp.stack(words, axis=-2)


def unpack_codes(words, bits: int):
    """Invert `pack_codes`: uint32 [..., bits, G] -> uint8 [..., G, 32]."""
    positions = position_words([words[..., i, :] for i in range(bits)], bits)
    by_byte = [[(word >> (8 * byte)).astype(jnp.uint8) for byte in range(4)] for word in positions]
    codes = jnp.stack([jnp.stack(four, axis=-1) for four in by_byte], axis=-2)
    return codes.reshape(*codes.shape[:-2], GROUP)


def field_of_position(position, part: int):
    """Locate the field of a position: its word within the part, and its shift within each byte.

    Args:
        position: 0 to 7, an integer or an integer array.
        part: the number of bits of the part, 1, 2, 4 or 8.
    """
    if part == 8:
        return position, 0 * position
    in_nibble = 4 // part
    return position % 4 // in_nibble, position // 4 * 4 + position % in_nibble * part


def _held(part: int) -> list[list[tuple[int, int]]]:
    """List the fields in each word of a part, as (position, shift)."""
    words = [[] for _ in range(part)]
    for position in range(POSITIONS):
        word, shift = field_of_position(position, part)
        words[word].append((position, shift))
    return words


def choose(mask: np.uint32, a, b):
    """Select the bits of a where the mask is 1, and the bits of b elsewhere."""
    return (a & mask) | (b & ~mask)


def position_words(words: list, bits: int, choose=choose) -> list:
    """Unpack the words of a group into one word per position, with a code in each byte.

    Args:
        words: uint32 arrays of one shape.
        bits: bits per code.
        choose: a function equivalent to `choose`, to use in its place.
    """
    if bits == 8:
        return words
    if bits <= 4:
        return _lowest_and_highest(nibble_words(words, bits, choose), 0, (1 << bits) - 1)
    above = _lowest_and_highest(nibble_words(words[4:], bits - 4, choose), 4, (1 << bits - 4) - 1)
    return [nibble | field for nibble, field in zip(_lowest_and_highest(words[:4], 0, 15), above)]


def nibble_words(words: list, bits: int, choose=choose) -> list:
    """Unpack words of codes of 1 to 4 bits into four words of nibbles.

    Word i has the codes of positions i and 4 + i. The bits above a code within its nibble are
    unspecified.
    """
    if bits == 4:
        return words
    if bits == 1:
        return [_shift(words[0], -i) for i in range(4)]
    pairs = [_shift(word, -shift) for word in words[:2] for shift in (0, 2)]
    if bits == 2:
        return pairs
    tops = [_shift(words[2], 2 - i) for i in range(4)]
    return [choose(np.uint32(0x33333333), pair, top) for pair, top in zip(pairs, tops)]


def _lowest_and_highest(nibbles, low, mask):
    """Split four words of nibbles into eight words of bytes, low nibbles first.

    The fields start at bit `low` of each byte.
    """
    mask = np.uint32((mask << low) * 0x01010101)
    return [_shift(word, low) & mask for word in nibbles] + [
        _shift(word, low - 4) & mask for word in nibbles
    ]


def _shift(word, left: int):
    if left == 0:
        return word
    return word << np.uint32(left) if left > 0 else word >> np.uint32(-left)


def half_float(codes):
    """Decode unsigned floats with 4 exponent and 3 fraction bits to float32, and halve them.

    The top bit is ignored; 0x7F decodes to zero.
    """
    code = codes.astype(jnp.uint16)
    # A float16 whose top exponent bit and lowest seven fraction bits are zero has the same fields,
    # with another exponent bias.
    bits = jnp.where(code == np.uint16(127), np.uint16(0), (code & np.uint16(127)) << np.uint16(7))
    return jax.lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32) * np.float32(2.0**7)


#: The smallest e for which 2^(e - 128) is a normal float32.
SUBNORMAL_BELOW = 2


def power_of_two(e, subnormal: bool = False):
    """Compute 2^(e - 128) as float32, for e from 0 to 255.

    The two subnormal powers, of e = 0 and e = 1, become zero unless `subnormal` is true.
    """
    e = e.astype(jnp.int32)
    bits = jnp.maximum(e - 1, 0) << 23
    if subnormal:
        bits = jnp.where(
            e < SUBNORMAL_BELOW, jnp.int32(1 << 21) << jnp.minimum(e, SUBNORMAL_BELOW), bits
        )
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def times_power_of_two(x, e):
    """Compute x * 2^(e - 128) for float32 integers x of at most 24 bits.

    Uses integer operations, because compilers may flush subnormal numbers to zero.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    fraction, biased = bits & 0x7FFFFF, ((bits >> 23) & 255) + e.astype(jnp.int32) - 128
    subnormal = (fraction | 0x800000) >> jnp.minimum(jnp.maximum(1 - biased, 0), 24)
    finite = jnp.where(biased > 0, (biased << 23) | fraction, subnormal)
    magnitude = jnp.where(biased < 255, finite, 0x7F800000)
    signed = magnitude | (bits & jnp.int32(-(2**31)))
    return jnp.where(x == 0, x, jax.lax.bitcast_convert_type(signed, jnp.float32))


class Factors(NamedTuple):
    """The factors of scales or minima: a float32 unit, and an int32 multiple or None for 1."""

    unit: jax.Array
    multiple: jax.Array | None = None

    def product(self) -> jax.Array:
        """Multiply the factors, in float32."""
        return self.unit if self.multiple is None else self.unit * self.multiple.astype(jnp.float32)


def scale_and_minimum(packing: Packing, get) -> tuple[Factors, Factors | None]:
    """Compute the scale and the minimum (or None) of groups, or of one half of each.

    Args:
        packing: the format of the planes.
        get: get(name) returns the entries of a plane for the groups, with d repeated over its
            span. All of these arrays have one shape.
    """
    if packing.scale == "e8m0":
        return Factors(power_of_two(get("scale"))), None
    if packing.scale == "e4m3":
        return Factors(half_float(get("scale"))), None
    if not packing.minimum:
        multiple = None if packing.scale == "d" else get("scale").astype(jnp.int32)
        return Factors(get("d").astype(jnp.float32), multiple), None
    d, m = (
        jax.lax.bitcast_convert_type(part, jnp.float16).astype(jnp.float32)
        for part in _split(get("d"), 16, jnp.uint16)
    )
    if packing.scale == "d":
        return Factors(d), Factors(m)
    lower, upper = _split(get("scale"), 4 if packing.scale == "nibbles" else 8, jnp.int32)
    return Factors(d, lower), Factors(-m, upper)


def _split(words, bits: int, dtype):
    """Split unsigned words of 2 * bits bits into their lower and upper halves."""
    words = words.astype(jnp.uint32)
    return (words & np.uint32((1 << bits) - 1)).astype(dtype), (words >> np.uint32(bits)).astype(
        dtype
    )


def values(packing: Packing, codes, get):
    """Compute the float32 values of codes, rounded as in ggml.

    Args:
        packing: the format of the planes.
        codes: signed integers, after the table and the offset were applied.
        get: as for `scale_and_minimum`; its arrays broadcast with the codes.
    """
    codes = codes.astype(jnp.float32)
    if packing.scale == "e8m0":
        return times_power_of_two(codes, get("scale"))
    scale, minimum = scale_and_minimum(packing, get)
    scaled = codes * scale.product()
    return scaled if minimum is None else scaled + minimum.product()
