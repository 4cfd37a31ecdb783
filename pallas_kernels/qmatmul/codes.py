"""Codes of packed weights in registers: as bytes for GEMV, and as float32 for skinny GEMM."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import packing as packings
from pallas_kernels import triton
from pallas_kernels.packing import GROUP, Packing, field_of_position, parts
from pallas_kernels.targets import Target


def signed_bytes(words, packing: Packing, target: Target, in_turn: bool = False) -> list:
    """Words of a group -> for each position, words of signed bytes.

    The packing's offset is not taken off.

    in_turn: position p < 4 has the first two bytes of itself in turn with those of position 4 + p,
    and that the two others.
    """
    if packing.table is None:
        return packings.position_words(words, packing.bits, _choose(target))
    return _by_table(words, packing.table, target, in_turn)


def come_in_turn(packings: Iterable[Packing], target: Target) -> bool:
    """Whether activations for all of these weights have their bytes in turn.

    Look-ups in tables give bytes in that order, so none has to be put in order.
    """
    return target.platform != "rocm" and all(
        packing.table is not None and packing.halves == 1 for packing in packings
    )


def _unsigned_bytes(words, packing: Packing, target: Target) -> tuple[list, int]:
    """As `signed_bytes`, uint32, plus a number so that none is negative.

    And that number plus the packing's offset.
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
    """Unpack words of a group to unsigned integers.

    Returns:
        For each of the 32 inputs, in order, a uint32 array below 2^23 and a place: the array is the
        code times 2^place. And the number by which all codes are too large, which includes the
        packing's offset.
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
    """Unpack words of a group to float32.

    The bits of a code replace zeros in the fraction of a power of two. That takes one instruction,
    and a shift that several codes share.

    Yields:
        For each of the 32 inputs, in order: its code plus a number, and that number, np.float32.
    """
    offset, whole = packing.offset, packing.table is not None or packing.bits == 8
    if whole:
        words, offset = _unsigned_bytes(words, packing, target)
    for element in range(GROUP):
        position, byte = divmod(element, 4)
        at = place(packing, position, byte)
        power = np.float32(2.0 ** (23 - at))
        bits = power.view(np.uint32)
        for word, shift, part, low in (
            [(words[position], 0, 8, 0)] if whole else _fields(words, packing, position)
        ):
            mask = np.uint32((1 << part) - 1 << at + low)
            bits = triton.and_or(_shifted(word, at + low - shift - 8 * byte), mask, bits, target)
        yield jax.lax.bitcast_convert_type(bits, jnp.float32), np.float32(power + offset)


def place(packing: Packing, position: int, byte: int) -> int:
    """Where in the 23 bits of a fraction a code begins.

    One shift of a word serves several codes where their places differ as in it.

    Codes end below bit 23, and the power of two, 2^(23 - place), plus the offset has few bits:
    times a scale it is exact in 24.
    """
    if packing.table is not None or packing.bits == 8:
        return 15 if packing.scale == "int8" else 7 + 8 * (byte % 2)
    first, part = {1: (13, 1), 2: (13, 2), 3: (14, 2), 4: (12, 4), 5: (11, 1), 6: (13, 4)}[
        packing.bits
    ]
    return first + field_of_position(position, part)[1]


def _fields(words, packing, position):
    """The parts of the code at a position.

    Yields:
        For each part its word, the shift within each byte, the bits and the lowest bit of the code.
    """
    for first, part, low in parts(packing.bits):
        word, shift = field_of_position(position, part)
        yield words[first + word], shift, part, low


def _shifted(words, left):
    if left == 0:
        return words
    return words << np.uint32(left) if left > 0 else words >> np.uint32(-left)
