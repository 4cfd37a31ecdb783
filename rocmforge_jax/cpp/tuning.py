"""Measures which prefetch is fastest on this processor, and saves it to a file.

A GEMV is bound by memory. The best distances of its prefetches depend on the processor and on the
rest of the machine.
"""

import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels import samples
from pallas_kernels.packing import Packing
from pallas_kernels.qmatmul import Product, Weight
from rocmforge_jax.cpp import library, products
from rocmforge_jax.cpp.library import Prefetch

#: Prefetches to measure: into one cache level, or into both with a short distance into the first.
CANDIDATES = (
    *(Prefetch(ahead, 0) for ahead in (2048, 4096, 8192)),
    *(Prefetch(0, ahead) for ahead in (4096, 8192, 16384, 32768)),
    *(Prefetch(2048, ahead) for ahead in (8192, 16384, 32768)),
)
#: Measurements of each prefetch, of which the fastest counts. They alternate between prefetches,
#: because other programs may run at the same time.
ROUNDS = 5
#: The share of time that another prefetch must save compared with the library's default.
LEAST_GAIN = 0.03
#: Groups of inputs of the measured matrices, and the most bytes of a matrix.
_GROUPS, _MOST_BYTES = 64, 256 << 20


def measure(found: Path, packings: Iterable[Packing]) -> dict[Prefetch, float]:
    """Measures products of a single row, and leaves the fastest prefetch in use.

    Args:
        found: The file of the library, which must be loaded.
        packings: The packings of the matrices. The times of all matrices are added.

    Returns:
        The bytes per second that products read with each prefetch.
    """
    library.use_prefetch(found, None)
    start = library.prefetch(found)
    candidates = {start, *CANDIDATES}
    multiplied = [_product(packing) for packing in packings]
    seconds = {candidate: [float("inf")] * len(multiplied) for candidate in candidates}
    for _, candidate in itertools.product(range(ROUNDS), sorted(candidates)):
        library.use_prefetch(found, candidate)
        for i, (run, _) in enumerate(multiplied):
            seconds[candidate][i] = min(seconds[candidate][i], _seconds(run))
    total = {candidate: sum(each) for candidate, each in seconds.items()}
    best = min(total, key=total.__getitem__)
    if total[best] > total[start] * (1 - LEAST_GAIN):
        best = start
    library.use_prefetch(found, best)
    nbytes = sum(nbytes for _, nbytes in multiplied)
    return {candidate: nbytes / total[candidate] for candidate in sorted(candidates)}


def remember(file: Path, found: Path) -> None:
    """Writes the prefetch in use to a file; ignores failures to write."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(library.prefetch(found)._asdict()))
        os.replace(unfinished, file)


def recall(file: Path, found: Path) -> None:
    """Uses the prefetch in a file from now on; changes nothing without a valid file."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        wanted = Prefetch(**json.loads(file.read_text()))
        library.use_prefetch(found, Prefetch(int(wanted.l1), int(wanted.l2)))


def _product(packing: Packing) -> tuple[Callable, int]:
    """Makes a product with a matrix that fits into no cache; returns it and the bytes it reads."""
    row = sum(plane.nbytes for plane in _planes(packing, 1).values())
    rows = max(1024, min(_MOST_BYTES, 2 * _cache_bytes()) // row)
    planes = jax.jit(functools.partial(_planes, packing, rows))()
    x = jnp.ones((1, _GROUPS * 32), jnp.float32)

    @jax.jit
    def multiply(x, planes):
        return products.multiply(x, [Product((Weight(planes, packing),))], mode="int16")

    jax.block_until_ready(multiply(x, planes))
    return functools.partial(multiply, x, planes), row * rows


def _planes(packing: Packing, rows: int) -> dict[str, jax.Array]:
    return samples.random_planes(jax.random.key(0), packing, rows, _GROUPS)


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def _cache_bytes() -> int:
    """Returns the size of the largest cache, or a guess if the system does not report it."""
    try:
        found = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = 0
    return found if found > 0 else 32 << 20
