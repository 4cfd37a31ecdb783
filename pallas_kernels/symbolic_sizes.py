"""Comparisons of sizes that may be symbolic, as in programs that `jax.export` writes."""

from collections.abc import Callable

from jax.errors import InconclusiveDimensionOperation


def surely(compare: Callable[[], bool]) -> bool:
    """Returns what a comparison of sizes gives; False where symbolic sizes leave it open."""
    try:
        return bool(compare())
    except InconclusiveDimensionOperation:
        return False
