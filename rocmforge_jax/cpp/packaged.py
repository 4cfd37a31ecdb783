"""The library in a wheel, which was compiled on another machine.

The wheel also contains its sources, so its name needs no hash of them. It uses the interface of the
oldest JAX that the package supports, which newer versions of JAX keep.
"""

from pathlib import Path

from rocmforge_jax.cpp import build, stored

#: The folder of the library within a wheel, and within the folder that a wheel is made from.
PARTS = ("rocmforge_jax", "cpp", "built")
FOLDER = Path(__file__).parent / PARTS[-1]
_PREFIX = "multiply"


def find() -> Path | None:
    """Finds the library of the installed wheel, or returns None if the wheel contains none."""
    return stored.newest(FOLDER, _PREFIX)


def find_complete() -> Path | None:
    """Like `find`, but returns None for a library that is damaged."""
    return stored.newest_complete(FOLDER, _PREFIX)


def make(root: Path) -> Path:
    """Compiles the library for a wheel that is made from the files in the folder `root`.

    Raises:
        build.BuildError: There is no compiler, the compiler fails, or the folder cannot be written.
    """
    return build.build_for_others(Path(root, *PARTS), _PREFIX)
