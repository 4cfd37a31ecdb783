"""How dequantisation is cut into programs: sizes as data, by family of GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of a program.

    Attributes:
        fours: fours of neighbouring values that it computes, a power of two.
        warps: its warps.
    """

    fours: int
    warps: int


BLOCKS = {"": Blocks(fours=1024, warps=8)}
