"""How products are cut into programs: tuned sizes, as data.

A table has an entry for each family of GPUs (`targets.of_family`). The sizes for NVIDIA were
measured on an H100 and an H200. Those for AMD are the largest for which XLA's compiler spills no
registers; they are not tuned on hardware. Those of the interpreter are small, because it compiles
every program: a short kernel compiles sooner.
"""

import dataclasses

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul.product import Product
from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Tile:
    """Sizes of a program of a GEMV.

    Attributes:
        rows: of the weight.
        groups: that are read at once.
        warps: of the program.
        batch: rows of activations.
        load_first: whether all loads of a step come before its arithmetic.
    """

    rows: int
    groups: int
    warps: int = 1
    batch: int = 1
    load_first: bool = False


@dataclasses.dataclass(frozen=True)
class MatrixTile(Tile):
    """Sizes of a program of a skinny GEMM.

    All numbers but splits are powers of two. `groups` are those of one product on the matrix units,
    `batch` is the most columns of its tile.

    Attributes:
        splits: programs that share the inputs of a row.
        stages: of the loop over groups, 1 where nothing is prefetched.
        lanes: threads that a row of the tile comes from; see `skinny_gemm`.
        run: neighbouring inputs that come from one thread.
        early: whether the launch that follows may begin early.
    """

    splits: int = 1
    stages: int = 1
    lanes: int = 4
    run: int = 2
    early: bool = True


#: For one row of activations: (outputs that a launch has at least, what its packings, their number
#: for an output and the mode must be, tile), the first that fits. Programs of one warp keep most
#: reads in flight. Types with a table, and those of two and three bits, take their time to compute,
#: in which others read: to load first only costs them registers.
GEMV_ONE_ROW = {
    "": ((0, {}, Tile(4, 64)),),
    "cuda": (
        (0, {"mode": "float", "scale": "nibbles"}, Tile(4, 64)),
        (0, {"mode": "float", "bits": 4, "table": None}, Tile(4, 64)),
        (0, {"mode": "float"}, Tile(2, 64)),
        (20000, {"weights": 1, "scale": "nibbles"}, Tile(4, 128)),
        (20000, {"weights": 1, "bits": 3, "mode": "int16"}, Tile(4, 128)),
        (20000, {"weights": 1, "bits": 3}, Tile(2, 64)),
        (20000, {"weights": 1, "bits": 2}, Tile(4, 64)),
        (50000, {"weights": 1, "table": None}, Tile(4, 64, load_first=True)),
        (0, {"table": None}, Tile(2, 64, load_first=True)),
        (0, {}, Tile(2, 64)),
    ),
    "rocm gfx9": ((0, {}, Tile(4, 128)),),
    "interpret": ((0, {}, Tile(1, 32)),),
}
#: Where a row is one step, programs take more of them: (groups that one reads at most, programs
#: that are left at least).
SHORT_ROWS = {"": (0, 0), "cuda": (256, 1500)}
#: Where the last step of a row would be so empty (share of all groups read), and narrower steps are
#: fuller, programs read half the groups of twice the rows. Measured for types with a table.
EMPTY_STEP = {"": 1.0, "cuda": 0.2}
#: For several rows of activations: (up to so many rows, tile).
GEMV_BATCH = {
    "": ((2, Tile(4, 32, batch=2)), (16, Tile(2, 32, batch=4))),
    "cuda": ((2, Tile(4, 64, batch=2)), (16, Tile(2, 64, batch=8))),
    "rocm gfx9": ((2, Tile(4, 64, batch=2)), (16, Tile(2, 64, batch=8))),
    "interpret": ((16, Tile(1, 32, batch=2)),),
}


#: For rows of activations that each go to an expert: (up to so many rows of an expert on average,
#: rows that a program computes together at most), the first that fits. With more rows the matrix
#: units are faster.
SHARED_ROWS = {"": ((1, 1),), "cuda": ((1, 1), (4, 2)), "interpret": ((1, 1), (4, 2))}
#: Rows of the weight of such a program, by whether activations are integers. With fewer, starting
#: the programs takes longer than their work: measured on an H200, experts of 768 to 2880 inputs.
SHARED_TILE = {
    "": {True: 4, False: 2},
    "cuda": {True: 8, False: 2},
    "interpret": {True: 1, False: 1},
}


def shared_rows(pairs: int, experts: int, target: Target) -> int | None:
    """The most rows that a program of a GEMV computes together, None for the matrix units.

    Args:
        pairs: rows of activations, each for one expert.
        experts: how many experts there are.
        target: what the kernel is compiled for.
    """
    table = of_family(SHARED_ROWS, target)
    return next((rows for most, rows in table if pairs <= most * experts), None)


def gemv(
    rows: int, products: list[Product], mode: str, target: Target, shared: int | None = None
) -> Tile:
    """The tile for a number of rows of activations, the products of a launch and a mode.

    shared: rows that a program computes together where there are experts, None for one.
    """
    pairs = products[0].pairs
    if shared is not None:
        return _gemv_of_shared_rows(shared, products[0].weights[0].groups, mode, target)
    if rows > 1 and pairs is None:
        tile = next(tile for most, tile in of_family(GEMV_BATCH, target) if rows <= most)
        # Floats are 32 operations for each group and row: a kernel of 8 rows compiles for 8 s, one
        # of 2 rows for 1 s.
        return dataclasses.replace(tile, batch=min(tile.batch, 2)) if mode == "float" else tile
    return _gemv_of_one_row(products, pairs or 1, mode, target)


def _gemv_of_one_row(products, pairs: int, mode, target) -> Tile:
    """The tile where each row of the outputs is computed by itself, `pairs` times."""
    outputs = pairs * sum(product.rows for product in products)
    packings = [packing for product in products for packing in product.packings]
    weights, groups = len(products[0].weights), products[0].weights[0].groups

    def fits(wanted):
        return all(_fits(wanted, packing, mode=mode, weights=weights) for packing in packings)

    tile = next(
        tile
        for least, wanted, tile in of_family(GEMV_ONE_ROW, target)
        if outputs >= least and fits(wanted)
    )

    if not tile.load_first and mode != "float":
        tile = _filled(tile, groups, of_family(EMPTY_STEP, target))

    def programs():
        return pairs * sum(-(-product.rows // tile.rows) for product in products)

    width, (most, least) = max(32, 1 << (groups - 1).bit_length()), of_family(SHORT_ROWS, target)
    # A row that is one step is so little work that starting a program takes longer.
    while (
        width <= tile.groups
        and 2 * tile.rows * width <= most
        and programs() >= 2 * least
        and mode != "float"
    ):
        tile = dataclasses.replace(tile, rows=2 * tile.rows)
    # A launch of no more programs than fit on a GPU at once has no others to compute while one
    # waits for its loads. Floats fill the registers.
    first = tile.load_first or programs() <= target.resident
    return dataclasses.replace(tile, load_first=first and mode != "float")


def _gemv_of_shared_rows(shared: int, groups: int, mode, target) -> Tile:
    """The tile where up to `shared` rows of activations go through one expert together."""
    # Steps of 64 groups, unless half as many leave less of the last one empty.
    width = 64 if -groups % 64 == -groups % 32 else 32
    rows = of_family(SHARED_TILE, target)[mode != "float"]
    return Tile(rows, width, batch=shared)


def _filled(tile: Tile, groups: int, allowed: float) -> Tile:
    """Halves the groups of a step for twice the rows where that reads far fewer empty groups."""
    half = tile.groups // 2

    def read(width):
        return -(-groups // width) * width

    if (
        half < 32
        or groups <= half
        or (read(tile.groups) - read(half)) / read(tile.groups) < allowed
    ):
        return tile
    return dataclasses.replace(tile, rows=2 * tile.rows, groups=half)


#: For tens of rows of activations: (up to so many rows, what a packing must be, tile), the first
#: that fits. On NVIDIA GPUs a warp has 16 rows of the weight, and no other has them too. What
#: begins early takes room from large tiles. "aligned": whether the rows of a plane begin at
#: multiples of 16 bytes; where not, loads are narrower.
SKINNY_GEMM = {
    "": (
        (16, {}, MatrixTile(32, 4, warps=2, batch=16, lanes=1, run=32)),
        (64, {}, MatrixTile(32, 4, warps=4, batch=32, lanes=1, run=32)),
    ),
    "cuda": ((64, {}, MatrixTile(64, 4, warps=4, batch=64, stages=2)),),
    "cuda 9": (
        (16, {"bits": 8}, MatrixTile(32, 16, warps=2, batch=16, stages=3)),
        (16, {"scale": "e8m0"}, MatrixTile(64, 16, warps=4, batch=16, stages=2)),
        (16, {"halves": 1}, MatrixTile(32, 8, warps=2, batch=16, stages=3)),
        (32, {"aligned": False}, MatrixTile(64, 16, warps=4, batch=32, stages=2, early=False)),
        (32, {}, MatrixTile(64, 8, warps=4, batch=32, stages=3, early=False)),
        (64, {}, MatrixTile(64, 8, warps=4, batch=64, stages=2, early=False)),
    ),
    "rocm gfx9": ((64, {}, MatrixTile(64, 8, warps=2, batch=32, run=4)),),
    "rocm gfx12": ((64, {}, MatrixTile(32, 4, warps=2, batch=32, lanes=2, run=8)),),
}


#: Programs that such a launch should have at least: with fewer, several share the inputs of a row.
PROGRAMS = 192


def skinny_gemm(
    rows: int, outputs: int, groups: int, packing: Packing, target: Target
) -> MatrixTile:
    """The tile for so many rows of activations of so many groups, and so many outputs of each."""
    tiles = of_family(SKINNY_GEMM, target)
    tile = next(
        (
            tile
            for most, wanted, tile in tiles
            if rows <= most and _fits(wanted, packing, aligned=groups % 4 == 0)
        ),
        tiles[-1][2],
    )
    programs = -(-outputs // tile.rows) * -(-rows // tile.batch)
    splits = 1
    while programs * splits < PROGRAMS and splits < 8 and groups // tile.groups >= 4 * splits:
        splits *= 2
    return dataclasses.replace(tile, splits=splits)


def rows_of_an_expert(pairs: int, experts: int, target: Target) -> int:
    """The rows of activations of a program, about as many as an expert has.

    Args:
        pairs: rows of activations, each for one expert.
        experts: how many experts there are.
        target: what the kernel is compiled for.
    """
    most = of_family(SKINNY_GEMM, target)[-1][2].batch
    return min(max(16, 1 << (-(-pairs // experts) - 1).bit_length()), most)


def _fits(wanted: dict, packing: Packing, **others) -> bool:
    """Whether a packing, and what else is known, is as wanted."""
    return all(
        (others[name] if name in others else getattr(packing, name)) == value
        for name, value in wanted.items()
    )
