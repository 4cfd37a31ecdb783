"""Tile sizes of the dequantisation kernel, by GPU family."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of a program.

    Attributes:
        fours: how many sets of four neighbouring values a program computes, a power of two.
        warps: warps per program.
    """

    fours: int
    warps: int


BLOCKS = {"": Blocks(fours=1024, warps=8)}
