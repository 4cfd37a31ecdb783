"""Codes of packed weights in registers: as the bytes that integer dot products take, and as float32."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import packing as packings
from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, Packing, field_of_position, parts
from pallas_kernels.targets import Target


def signed_bytes(words, packing: Packing, target: Target) -> list:
    """Words of a group -> for each position, words of signed bytes; the packing's offset is not taken off."""
    if packing.table is None:
        return packings.position_words(words, packing.bits)
    return _by_table(words, packing.table, target)


def _unsigned_bytes(words, packing, target):
    """As `signed_bytes`, plus 128."""
    if packing.table is None:
        return [word ^ np.uint32(0x80808080) for word in packings.position_words(words, packing.bits)]
    return [word.astype(jnp.uint32) for word in _by_table(words, tuple(entry + 128 for entry in packing.table), target)]


def _by_table(words, table, target):
    pairs = [triton.bytes_of_table(word, table, target) for word in words]
    return [low for low, _ in pairs] + [high for _, high in pairs]


def lifted(words, packing: Packing, target: Target):
    """Words of a group -> for each of its 32 inputs, in order: its code as float32 plus a number, and that number, np.float32.

    A code's bits go where the fraction of a power of two has zeros: an instruction, and a shift for several codes.
    """
    offset, whole = packing.offset, packing.table is not None or packing.bits == 8
    if whole:  # bytes, made unsigned
        words, offset = _unsigned_bytes(words, packing, target), offset + 128
    for element in range(GROUP):
        position, byte = divmod(element, 4)
        at = place(packing, position, byte)
        power = np.float32(2.0 ** (23 - at))
        bits = power.view(np.uint32)
        for word, shift, part, low in [(words[position], 0, 8, 0)] if whole else _fields(words, packing, position):
            mask = np.uint32((1 << part) - 1 << at + low)
            bits = triton.and_or(_shifted(word, at + low - shift - 8 * byte), mask, bits, target)
        yield jax.lax.bitcast_convert_type(bits, jnp.float32), np.float32(power + offset)


def place(packing: Packing, position: int, byte: int) -> int:
    """Where in the 23 bits of a fraction a code begins. One shift of a word serves several codes where their places differ as in it.

    Codes end below bit 23, and the power of two, 2^(23 - place), plus the offset has few bits: times a scale it is exact in 24.
    """
    if packing.table is not None or packing.bits == 8:
        return 15 if packing.scale == "int8" else 7 + 8 * (byte % 2)
    high, low = divmod(position, 4)
    first, for_high, for_low = {1: (13, 4, 1), 2: (13, 0, 2), 3: (14, 0, 2), 4: (12, 4, 0), 5: (11, 4, 1), 6: (13, 4, 0)}[packing.bits]
    return first + for_high * high + for_low * low


def _fields(words, packing, position):
    """The parts of the code at a position: (word, shift within each byte, bits, lowest bit of the code)."""
    for first, part, low in parts(packing.bits):
        word, shift = field_of_position(position, part)
        yield words[first + word], shift, part, low


def _shifted(words, left):
    if left == 0:
        return words
    return words << np.uint32(left) if left > 0 else words >> np.uint32(-left)
