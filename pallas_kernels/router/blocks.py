"""Tile sizes of the router's product, by GPU family."""

import dataclasses

from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tile sizes of a program, powers of two.

    Attributes:
        experts: experts; 8 of them are 32 bytes of a row.
        inputs: inputs.
        threads: threads.
        tokens: tokens: 1, or at least 16 for the matrix product of all of them.
    """

    experts: int
    inputs: int
    threads: int = 128
    tokens: int = 1


#: GPU family -> (most tokens, smallest number of experts, sizes). The first entry that fits is
#: used. Programs of several tokens read the weight once for all of them. Measured on an H200.
#: For AMD, with larger sizes, XLA's compiler would spill registers.
BLOCKS = {
    "": (
        (16, 0, Blocks(experts=8, inputs=512)),
        (64, 0, Blocks(experts=16, inputs=32, tokens=16)),
    ),
    "cuda": (
        (4, 256, Blocks(experts=32, inputs=128)),
        (4, 0, Blocks(experts=8, inputs=512)),
        (64, 0, Blocks(experts=32, inputs=64, tokens=32)),
    ),
}


def most_tokens(target: Target) -> int:
    """Returns the most tokens for which the kernels are used. For more, XLA is faster."""
    return of_family(BLOCKS, target)[-1][0]


def blocks_of(tokens: int, experts: int, target: Target) -> Blocks:
    """Chooses the sizes for a number of tokens and experts."""
    table = of_family(BLOCKS, target)
    fitting = [blocks for most, least, blocks in table if tokens <= most and experts >= least]
    return fitting[0] if fitting else table[-1][2]
