"""How the choice of experts is cut into programs: sizes as data, by family of GPU."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of programs, powers of two.

    Attributes:
        experts: experts of a program of the first kernel; 8 of them are 32 bytes of a row.
        inputs: inputs of a program of the first kernel.
        pairs: most pairs of experts that the second kernel compares at once.
        threads: of a program of the first kernel.
        threads_choosing: of a program of the second kernel.
    """

    experts: int
    inputs: int
    pairs: int
    threads: int
    threads_choosing: int = 128


#: Family of GPU -> (experts from which on they count, sizes), the fewest experts first.
BLOCKS = {
    "": ((0, Blocks(experts=8, inputs=512, pairs=8192, threads=128)),),
    "cuda": (
        (0, Blocks(experts=8, inputs=512, pairs=8192, threads=128)),
        (
            256,
            Blocks(experts=32, inputs=128, pairs=32768, threads=128, threads_choosing=256),
        ),
    ),
}


def blocks_of(experts: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of experts."""
    return [blocks for least, blocks in of_family(BLOCKS, target) if experts >= least][-1]
