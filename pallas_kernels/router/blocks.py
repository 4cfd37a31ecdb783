"""How the choice of experts is cut into programs: sizes as data, by family of GPU."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of programs, powers of two.

    Attributes:
        experts: experts of a program of the first kernel; 8 of them are 32 bytes of a row.
        inputs: inputs of a program of the first kernel.
        pairs: most pairs of experts that the second kernel compares at once.
        threads: of a program.
    """

    experts: int
    inputs: int
    pairs: int
    threads: int


BLOCKS = {"": Blocks(experts=8, inputs=512, pairs=8192, threads=128)}
