"""The library that a wheel brings along, compiled on another machine.

It is made from the sources beside it, so its name tells no versions. It speaks to JAX through the
interface of the oldest JAX that the package supports, which newer ones keep.
"""

from pathlib import Path

from rocmforge_jax.cpp import build, stored

#: Where the library is in a wheel, and in the folder that becomes one.
PARTS = ("rocmforge_jax", "cpp", "built")
FOLDER = Path(__file__).parent / PARTS[-1]
_PREFIX = "multiply"


def find() -> Path | None:
    """Finds the library of the installed wheel; None where the wheel has none."""
    return stored.newest(FOLDER, _PREFIX)


def find_complete() -> Path | None:
    """Like `find`, but returns None for a library that is damaged."""
    return stored.newest_complete(FOLDER, _PREFIX)


def make(root: Path) -> Path:
    """Compiles the library for a wheel whose files are being put together in `root`.

    Raises:
        build.BuildError: There is no compiler, or it fails.
    """
    return build.build_for_others(Path(root, *PARTS), _PREFIX)
