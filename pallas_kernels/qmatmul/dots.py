"""Dot products of groups of activations with groups of a weight, in registers.

Integer modes use 4-way dot products of bytes, which are exact, and multiply by the scales of both
sides afterwards. Arrays are [W]: one entry for each of W groups.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import triton
from pallas_kernels.packing import GROUP, POSITIONS, Factors, Packing
from pallas_kernels.qmatmul import codes
from pallas_kernels.qmatmul.activations import FLOATS_UNIT


class WeightGroups(NamedTuple):
    """Groups of one row of a weight.

    Attributes:
        packing: the packing of the weight.
        words: the words of the codes.
        scales: the scale and the minimum (or None) of each half of a group, or of all of it.
    """

    packing: Packing
    words: list
    scales: list[tuple[Factors, Factors | None]]

    def positions(self, half: int) -> range:
        """Return the positions of a group that have the scale of a half."""
        return range(POSITIONS) if self.packing.halves == 1 else range(4 * half, 4 * half + 4)


class ActivationGroups(NamedTuple):
    """Groups of one row of activations, as in `Activations`."""

    words: list
    scale: jax.Array
    sums: list
    in_turn: bool

    @property
    def of_floats(self) -> bool:
        """Whether the activations are in mode "float"."""
        return len(self.words[0]) == GROUP

    def multiply_add(self, weight: WeightGroups, total, zero, together, target):
        """Add the products of these groups with groups of a weight to `total`.

        Args:
            weight: the groups of the weight.
            total: float32 [W].
            zero: int32 [W], the initial value of sums; see `triton.zero_after`.
            together: see `_scaled`.
            target: the compilation target.
        """
        dots = (self._float_dots if self.of_floats else self._integer_dots)(weight, zero, target)
        scales, minima = zip(*weight.scales)
        of_groups = _scaled(list(dots), scales, None, together, target)
        if minima[0] is not None:
            sums = [self._sum(weight, half) for half in range(len(minima))]
            of_groups = _scaled(sums, minima, of_groups, together, target)
        return triton.multiply_add(of_groups, self.scale, total, target)

    def _sum(self, weight, half):
        return self.sums[half] if weight.packing.halves == 2 else self.sums[0] + self.sums[1]

    def _integer_dots(self, weight, zero, target):
        of_weight = [
            word.astype(jnp.int32)
            for word in codes.signed_bytes(weight.words, weight.packing, target, self.in_turn)
        ]
        for half in range(weight.packing.halves):
            dot = None
            for i, words in enumerate(self.words):
                of_bytes = zero
                if weight.packing.offset and i == len(self.words) - 1:
                    of_bytes = zero - weight.packing.offset * self._sum(weight, half)
                for p in weight.positions(half):
                    of_bytes = triton.dot4(of_weight[p], words[p], of_bytes, target)
                dot = of_bytes if dot is None else (dot << 7) + of_bytes
            yield dot

    def _float_dots(self, weight, zero, target):
        numbers, offset = codes.unsigned(weight.words, weight.packing, target)
        unit, zero = (
            triton.unit_of_bits(target) * FLOATS_UNIT,
            jax.lax.bitcast_convert_type(zero, jnp.float32),
        )
        for half in range(weight.packing.halves):
            dots = {}
            if offset:
                dots[0] = triton.multiply_add(
                    self._sum(weight, half), np.float32(-offset * unit), zero, target
                )
            positions = weight.positions(half)
            for element in range(4 * positions.start, 4 * positions.stop):
                bits, place = numbers[element]
                dots[place] = triton.multiply_bits_add(
                    bits, self.words[0][element], dots.get(place, zero), target
                )
            yield _sum_of_places(dots, unit, target)


def _sum_of_places(dots: dict, unit: float, target):
    """Add dot products, each divided by 2^place and by `unit`."""
    total = None
    for place, dot in dots.items():
        factor = np.float32(2.0**-place / unit)
        total = dot * factor if total is None else triton.multiply_add(dot, factor, total, target)
    return total


def _scaled(numbers, scales: list[Factors], addend, together: bool, target):
    """Multiply the numbers of each half by their scale, and add them to the addend, if any.

    together: whether to add the halves as integers. This requires that they have one unit, and
    multiples of it below 16, so that their sum fits in 32 bits.
    """
    if together:
        numbers = [sum(number * scale.multiple for number, scale in zip(numbers, scales))]
        scales = [Factors(scales[0].unit)]
    for number, scale in zip(numbers, scales):
        number, factor = number.astype(jnp.float32), scale.product()
        addend = (
            number * factor
            if addend is None
            else triton.multiply_add(number, factor, addend, target)
        )
    return addend
