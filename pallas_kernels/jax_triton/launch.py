"""What a launch of the kernel consists of: arrays, constants and sizes. Imports no Triton."""

import dataclasses
from typing import Any

from pallas_kernels import instructions
from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import Activations, Product, Weight, blocks
from pallas_kernels.qmatmul.activations import FLOATS_UNIT
from pallas_kernels.targets import Target

#: The bytes of an integer of the activations, by mode.
PARTS = {"int16": 2, "int8": 1, "float": 0}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch of `kernel.multiply`.

    Attributes:
        arrays: the inputs, in the order of the kernel's parameters.
        constants: the constants of the kernel, by name.
        grid: the number of programs along each axis.
        warps: warps per program.
    """

    arrays: tuple[Any, ...]
    constants: dict[str, Any]
    grid: tuple[int, int]
    warps: int


def launch(
    x: Activations, weight: Weight, target: Target, tile: blocks.Tile | None = None
) -> Launch:
    """Describe the product of a few rows of activations with a packed weight.

    Args:
        x: the activations; arrays, or their shapes and dtypes.
        weight: the weight; arrays, or their shapes and dtypes.
        target: the compilation target, an AMD GPU.
        tile: the tile sizes; the default is the one of `qmatmul.gemv`.
    """
    tile = tile or blocks.gemv(x.rows, [Product((weight,))], x.mode, target)
    batch, outputs = min(tile.batch, x.rows), tile.outputs(weight.rows)
    codes = weight.planes["codes"]
    # The kernel does not read a plane that the packing lacks, but it has a parameter for it.
    planes = [weight.planes.get(name, codes) for name in ("d", "scale")]
    sizes = dict(M=x.rows, N=weight.rows, G=x.groups)
    sizes |= dict(R=outputs, W=tile.step(x.groups), BATCH=batch)
    modes = dict(PARTS=PARTS[x.mode], UNIT=FLOATS_UNIT, DOT4=instructions.dot4(target))
    return Launch(
        (x.words, x.scale, x.sums, codes, *planes),
        sizes | modes | _constants(weight.packing, x.mode),
        (-(-weight.rows // outputs), -(-x.rows // batch)),
        tile.warps,
    )


def _constants(packing: Packing, mode: str) -> dict[str, Any]:
    table, offset = packing.table or (), packing.offset
    if table and mode == "float":
        # Floats are multiplied with unsigned bytes. The smallest offset rounds least.
        least = min(table)
        table, offset = [entry - least for entry in table], offset - least
    entries = bytes(entry & 255 for entry in table)
    return dict(
        BITS=packing.bits,
        OFFSET=offset,
        LOW_TABLE=int.from_bytes(entries[:8], "little"),
        HIGH_TABLE=int.from_bytes(entries[8:], "little"),
        SCALE=packing.scale,
        HALVES=packing.halves,
        SPAN=packing.span,
        MINIMUM=packing.minimum,
    )
