"""Tile sizes of the products with packed weights.

Each table has an entry per GPU family (`targets.of_family`). The sizes for NVIDIA were measured on
an H100 and an H200. The sizes for AMD are the largest for which XLA's compiler spills no registers.
They are not tuned on hardware. The sizes for the interpreter are small, because it compiles every
program, and short kernels compile faster.
"""

import dataclasses

from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul.product import Product, Weight, stored_groups
from pallas_kernels.targets import Target, of_family


@dataclasses.dataclass(frozen=True)
class Tile:
    """Tile sizes of a GEMV program.

    Attributes:
        rows: rows of the weight.
        groups: groups that are read at once, in one step.
        warps: warps per program.
        batch: rows of activations.
        load_first: whether all loads of a step come before its arithmetic.
        blocks: how many blocks of `rows` rows a program computes, one after the other. If a row is
            a single step, the blocks share the loads of the activations.
    """

    rows: int
    groups: int
    warps: int = 1
    batch: int = 1
    load_first: bool = False
    blocks: int = 1

    def outputs(self, rows: int) -> int:
        """Return the rows of the tile, or a smaller power of two if a weight has fewer `rows`."""
        return min(self.rows, 1 << (rows.bit_length() - 1))

    def step(self, groups: int) -> int:
        """Return the groups of a step, or a smaller power of two if a row has fewer `groups`."""
        return min(self.groups, 1 << (groups - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class MatrixTile(Tile):
    """Tile sizes of a skinny GEMM program.

    All sizes except `splits` and `stages` are powers of two. `groups` is the number of groups in
    one product on the matrix units. `batch` is the largest number of columns of its tile.

    Attributes:
        splits: how many programs share the inputs of a row.
        stages: software pipelining stages of the loop over groups; 1 for no prefetch.
        lanes: how many threads supply a row of the tile; see `skinny_gemm`.
        run: how many neighbouring inputs one thread supplies.
        early: whether the next launch may begin early.
    """

    splits: int = 1
    stages: int = 1
    lanes: int = 4
    run: int = 2
    early: bool = True


#: Tiles for one row of activations: (least number of outputs of a launch, conditions, tile). The
#: first entry that fits is used. Conditions are values of the packings, the mode, and the number of
#: weights per output. Programs of one warp keep the most reads in flight. Types with a table, and
#: types of two and three bits, take long to compute, and other programs read in that time. Loading
#: first would only cost them registers.
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
#: If a row is a single step, programs compute more rows: (most groups that a program reads, least
#: number of programs that remain).
SHORT_ROWS = {"": (0, 0), "cuda": (256, 1500)}
#: The last step of a row is partly empty, and steps of half the width read fewer empty groups. If
#: they save at least this share of all groups read, a step reads half the groups of twice the rows.
#: Measured for types with a table.
EMPTY_STEP = {"": 1.0, "cuda": 0.2}
#: Tiles for several rows of activations: (most rows, tile).
GEMV_BATCH = {
    "": ((2, Tile(4, 32, batch=2)), (16, Tile(2, 32, batch=4))),
    "cuda": ((2, Tile(4, 64, batch=2)), (16, Tile(2, 64, batch=8))),
    "rocm gfx9": ((2, Tile(4, 64, batch=2)), (16, Tile(2, 64, batch=8))),
    "interpret": ((16, Tile(1, 32, batch=2)),),
}


#: For products with experts: (most rows per expert on average, conditions, most rows that a program
#: computes together). The first entry that fits is used. With more rows, the matrix units are
#: faster. "exact": whether the skinny GEMM computes with the exact weights, which it decodes with
#: the fewest instructions.
SHARED_ROWS = {
    "": ((1, {}, 1),),
    "cuda": ((1, {}, 1), (4, {"exact": False}, 2)),
    "interpret": ((1, {}, 1), (4, {"exact": False}, 2)),
}
#: Rows of the weight in such a program, by whether activations are integers. With fewer rows, a
#: program takes longer to start than to compute. Measured on an H200, with experts of 768 to 2880
#: inputs.
SHARED_TILE = {
    "": {True: 4, False: 2},
    "cuda": {True: 8, False: 2},
    "interpret": {True: 1, False: 1},
}
#: (most groups, blocks): if a row has at most so many groups, such a program computes so many
#: blocks. Measured on an H200: for 768 inputs, 4 blocks take 56 microseconds instead of 69; for
#: 2048 inputs, 2 blocks are slower than one.
SHARED_BLOCKS = {"": (0, 1), "cuda": (32, 4), "interpret": (32, 2)}


def shared_rows(pairs: int, experts: int, exact: bool, target: Target) -> int | None:
    """Return how many rows a GEMV program computes together; None to use the matrix units.

    Args:
        pairs: rows of activations, each for one expert.
        experts: the number of experts.
        exact: whether the skinny GEMM computes with the exact weights.
        target: the compilation target.
    """
    for most, wanted, rows in of_family(SHARED_ROWS, target):
        if pairs <= most * experts and wanted.get("exact", exact) == exact:
            return rows
    return None


def gemv(
    rows: int, products: list[Product], mode: str, target: Target, shared: int | None = None
) -> Tile:
    """Choose the tile of a GEMV launch.

    Args:
        rows: rows of activations.
        products: the products of the launch.
        mode: how the activations are quantised.
        target: the compilation target.
        shared: with experts, how many rows a program computes together; None for one row.
    """
    pairs = products[0].pairs
    if shared is not None:
        return _gemv_of_shared_rows(shared, products[0].weights[0].groups, mode, target)
    if rows > 1 and pairs is None:
        tile = next(tile for most, tile in of_family(GEMV_BATCH, target) if rows <= most)
        # Mode "float" has 32 operations per group and row, so kernels of many rows compile slowly
        # (measured: docs/kernels.md).
        return dataclasses.replace(tile, batch=min(tile.batch, 2)) if mode == "float" else tile
    return _gemv_of_one_row(products, pairs or 1, mode, target)


def _gemv_of_one_row(products, pairs: int, mode, target) -> Tile:
    """Choose the tile for programs that each compute one of `pairs` rows of the outputs."""
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
    # Computing a row of a single step takes less time than starting a program.
    while (
        width <= tile.groups
        and 2 * tile.rows * width <= most
        and programs() >= 2 * least
        and mode != "float"
    ):
        tile = dataclasses.replace(tile, rows=2 * tile.rows)
    # If all programs of a launch fit on the GPU at once, no other program can compute while one
    # waits for its loads. In mode "float", arithmetic needs all registers.
    first = tile.load_first or programs() <= target.resident
    return dataclasses.replace(tile, load_first=first and mode != "float")


def _gemv_of_shared_rows(shared: int, groups: int, mode, target) -> Tile:
    """Choose the tile for programs that compute up to `shared` rows of one expert together."""
    # Steps have 64 groups, or 32 if that leaves less of the last step empty.
    width = 64 if -groups % 64 == -groups % 32 else 32
    rows = of_family(SHARED_TILE, target)[mode != "float"]
    most, blocks = of_family(SHARED_BLOCKS, target)
    return Tile(rows, width, batch=shared, blocks=blocks if groups <= most else 1)


def _filled(tile: Tile, groups: int, allowed: float) -> Tile:
    """Halve the groups of a step and double its rows if that reads far fewer empty groups."""
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


#: Tiles for tens of rows of activations: (most rows, conditions on the packing, tile). The first
#: entry that fits is used. On NVIDIA GPUs, each warp has 16 rows of the weight, which no other warp
#: shares. A launch that begins early takes room from large tiles. "aligned": whether the rows of a
#: plane begin at multiples of 16 bytes. If not, loads are narrower.
SKINNY_GEMM = {
    "": (
        (16, {}, MatrixTile(32, 4, warps=2, batch=16, lanes=1, run=32)),
        (64, {}, MatrixTile(32, 4, warps=4, batch=32, lanes=1, run=32)),
    ),
    "cuda": ((64, {}, MatrixTile(64, 4, warps=4, batch=64, stages=2)),),
    "cuda 9": (
        (16, {"bits": 8}, MatrixTile(32, 16, warps=2, batch=16, stages=3)),
        (16, {"scale": "e8m0"}, MatrixTile(64, 8, warps=4, batch=16, stages=3)),
        (16, {"halves": 1}, MatrixTile(32, 8, warps=2, batch=16, stages=3)),
        (32, {"aligned": False}, MatrixTile(64, 16, warps=4, batch=32, stages=2, early=False)),
        (32, {}, MatrixTile(64, 8, warps=4, batch=32, stages=3, early=False)),
        (64, {}, MatrixTile(64, 8, warps=4, batch=64, stages=2, early=False)),
    ),
    "rocm gfx9": ((64, {}, MatrixTile(64, 8, warps=2, batch=32, run=4)),),
    "rocm gfx12": ((64, {}, MatrixTile(32, 4, warps=2, batch=32, lanes=2, run=8)),),
}


#: Whether such a launch may have several weights. On gfx11, XLA's compiler then spills registers.
SEVERAL_WEIGHTS = {"": True, "rocm": False}
#: The least number of programs of such a launch. To reach it, programs share the inputs of a row.
PROGRAMS = 192


def skinny_gemm(rows: int, products: list[Product], target: Target) -> MatrixTile:
    """Choose the tile of a skinny GEMM launch.

    Args:
        rows: rows of activations.
        products: the products of the launch.
        target: the compilation target.
    """
    weights = [weight for product in products for weight in product.weights]
    # All products share the columns of a launch, so they share their tile.
    tile = min(
        (_skinny_gemm_of(rows, weight, target) for weight in weights),
        key=lambda tile: tile.rows * tile.groups,
    )
    outputs, groups = sum(product.rows for product in products), stored_groups(weights[0])
    programs = -(-outputs // tile.rows) * -(-rows // tile.batch)
    splits = 1
    while programs * splits < PROGRAMS and splits < 8 and groups // tile.groups >= 4 * splits:
        splits *= 2
    return dataclasses.replace(tile, splits=splits)


def _skinny_gemm_of(rows: int, weight: Weight, target: Target) -> MatrixTile:
    """Choose the tile of a launch with a single weight."""
    tiles, aligned = of_family(SKINNY_GEMM, target), stored_groups(weight) % 4 == 0
    for most, wanted, tile in tiles:
        if rows <= most and _fits(wanted, weight.packing, aligned=aligned):
            return tile
    return tiles[-1][2]


def rows_of_an_expert(pairs: int, experts: int, target: Target) -> int:
    """Return how many rows of activations a program computes, about as many as an expert has.

    Args:
        pairs: rows of activations, each for one expert.
        experts: the number of experts.
        target: the compilation target.
    """
    most = of_family(SKINNY_GEMM, target)[-1][2].batch
    return min(max(16, 1 << (-(-pairs // experts) - 1).bit_length()), most)


def _fits(wanted: dict, packing: Packing, **others) -> bool:
    """Return whether a packing and other facts have the wanted values."""
    return all(
        (others[name] if name in others else getattr(packing, name)) == value
        for name, value in wanted.items()
    )
