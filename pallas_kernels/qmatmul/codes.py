"""Codes of packed weights in registers: as bytes for GEMV, and as float32 for skinny GEMM."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import packing as packings
from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, Packing, field_of_position, parts
from pallas_kernels.targets import Target


def signed_bytes(words, packing: Packing, target: Target, in_turn: bool = False) -> list:
    """Unpack words of a group into words of signed bytes, one for each position.

    The packing's offset is not subtracted.

    in_turn: whether bytes of positions p < 4 and 4 + p are interleaved. Word p then has the first
    two bytes of both positions, and word 4 + p has the last two.
    """
    if packing.table is None:
        return packings.position_words(words, packing.bits, _choose(target))
    return _by_table(words, packing.table, target, in_turn)


def come_in_turn(packings: Iterable[Packing], target: Target) -> bool:
    """Return whether activations for all of these weights use the order `in_turn`.

    Table lookups return bytes in that order, so the bytes of weights need no reordering.
    """
    return target.platform != "rocm" and all(
        packing.table is not None and packing.halves == 1 for packing in packings
    )


def _unsigned_bytes(words, packing: Packing, target: Target) -> tuple[list, int]:
    """Unpack words into unsigned bytes: the bytes of `signed_bytes`, plus a constant.

    Returns:
        A uint32 word for each position, and the constant plus the packing's offset.
    """
    if packing.table is not None:
        more = 128 if min(packing.table) < 0 else 0
        table = tuple(entry + more for entry in packing.table)
        return [
            word.astype(jnp.uint32) for word in _by_table(words, table, target)
        ], more + packing.offset
    signed = signed_bytes(words, packing, target)
    if packing.bits < 8:
        return signed, packing.offset
    return [word ^ np.uint32(0x80808080) for word in signed], 128 + packing.offset


def _by_table(words, table, target, in_turn=False):
    pairs = [triton.bytes_of_table(word, table, target, in_turn) for word in words]
    return [first for first, _ in pairs] + [second for _, second in pairs]


def unsigned(words, packing: Packing, target: Target) -> tuple[list, int]:
    """Unpack words of a group into unsigned integers.

    Returns:
        A list and an offset. For each of the 32 inputs, in order, the list has a uint32 array below
        2^23 and a place: the array is the code times 2^place. The offset is to be subtracted from
        all of these codes; it includes the packing's offset.
    """
    if packing.bits > 4 or packing.table is not None:
        words, offset = _unsigned_bytes(words, packing, target)
        return [
            (triton.unsigned_byte(word, i, target), 0) for word in words for i in range(4)
        ], offset
    words, mask = (
        packings.nibble_words(words, packing.bits, _choose(target)),
        (1 << packing.bits) - 1,
    )
    halves, numbers = [(word, word >> np.uint32(16)) for word in words], []
    for element in range(GROUP):
        position, byte = divmod(element, 4)
        place = position // 4 * 4 + byte % 2 * 8
        numbers.append((halves[position % 4][byte // 2] & np.uint32(mask << place), place))
    return numbers, packing.offset


def _choose(target):
    return functools.partial(triton.choose, target=target)


def lifted(words, packing: Packing, target: Target):
    """Unpack words into float32.

    The bits of a code replace zeros in the fraction of a power of two. This takes one instruction
    per code, and a shift that several codes share.

    Yields:
        An array and an np.float32 for each byte of each position; the bytes are in BYTE_ORDER. The
        array minus the np.float32 is the code minus the packing's offset.
    """
    offset, whole = packing.offset, packing.table is not None or packing.bits == 8
    if whole:
        words, offset = _unsigned_bytes(words, packing, target)
    for position in range(POSITIONS):
        for byte in BYTE_ORDER:
            at = place(packing, position, byte)
            power = np.float32(2.0 ** (23 - at))
            bits = power.view(np.uint32)
            for word, shift, part, low in (
                [(words[position], 0, 8, 0)] if whole else _fields(words, packing, position)
            ):
                mask = np.uint32((1 << part) - 1 << at + low)
                shifted = _shifted(word, at + low - shift - 8 * byte)
                bits = triton.and_or(shifted, mask, bits, target)
            yield jax.lax.bitcast_convert_type(bits, jnp.float32), np.float32(power + offset)


#: The order of the four inputs of a position: those that are 16 bits apart are neighbours.
BYTE_ORDER = (0, 2, 1, 3)
#: The numbers of e2m1 codes (sign, two exponent bits, one fraction bit), doubled.
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def is_exact_in_bfloat16(packing: Packing, target: Target) -> bool:
    """Return whether `in_bfloat16` supports a packing: its products with scales are exact."""
    return (
        packing.table == tuple(number + packing.offset for number in E2M1)
        and packing.scale in ("e8m0", "e4m3")
        and target.multiplies_bfloat16_pairs
    )


def in_bfloat16(words, scales: list, target: Target):
    """Convert e2m1 codes to bfloat16 and multiply by their scales, two at a time.

    The fields of a code become the sign, the lowest two exponent bits and the highest fraction bit
    of a bfloat16. This bfloat16 is 2^-127 times the number in `E2M1`.

    Args:
        words: the words of a group.
        scales: float32, one scale for all positions, or one for each half of them.
        target: the compilation target.

    Yields:
        bfloat16 arrays, one for each byte of each position. The bytes are in BYTE_ORDER.
    """
    factors = [triton.twice_bfloat16(scale) for scale in scales]
    for position in range(POSITIONS):
        word, half = words[position % 4], position * len(scales) // POSITIONS
        for byte in BYTE_ORDER[::2]:
            at = 8 * byte + position // 4 * 4
            others = _shifted(word, 6 - at) & np.uint32(0x01C001C0)
            pair = triton.and_or(_shifted(word, 12 - at), np.uint32(0x80008000), others, target)
            pair = triton.multiply_bfloat16_pairs(pair, jnp.full_like(pair, 0x7F007F00))
            pair = triton.multiply_bfloat16_pairs(pair, factors[half])
            yield from triton.bfloat16_pair(pair)


def place(packing: Packing, position: int, byte: int) -> int:
    """Return the bit at which a code begins within the 23 fraction bits of a float32.

    Several codes share one shift of a word if their places are as far apart as in the word.

    Codes end below bit 23. The power of two, 2^(23 - place), plus the offset has few bits, so that
    its product with a scale is exact in 24 bits.
    """
    if packing.table is not None or packing.bits == 8:
        return 15 if packing.scale == "int8" else 7 + 8 * (byte % 2)
    first, part = {1: (13, 1), 2: (13, 2), 3: (14, 2), 4: (12, 4), 5: (11, 1), 6: (13, 4)}[
        packing.bits
    ]
    return first + field_of_position(position, part)[1]


def _fields(words, packing, position):
    """Iterate over the parts of the code at a position.

    Yields:
        For each part: its word, its shift within each byte, its number of bits, and its lowest bit
        within the code.
    """
    for first, part, low in parts(packing.bits):
        word, shift = field_of_position(position, part)
        yield words[first + word], shift, part, low


def _shifted(words, left):
    if left == 0:
        return words
    return words << np.uint32(left) if left > 0 else words >> np.uint32(-left)
