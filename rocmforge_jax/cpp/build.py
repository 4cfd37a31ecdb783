"""Compiles the C++ sources of `src` into one shared library.

This needs a C++17 compiler and the headers of JAX, but no network. It does not import JAX.
"""

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from rocmforge_jax import settings
from rocmforge_jax.cpp import commands, stored, units
from rocmforge_jax.cpp.commands import BuildError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: Compilers to look for, in this order, unless the environment variable CXX names one.
COMPILERS = ("c++", "g++", "clang++")
#: Time limits in seconds for a quick call of the compiler and for compiling, on a busy machine.
ANSWER_LIMIT = 60.0
COMPILE_LIMIT = 3600.0
_SCRATCH = ".making-"
#: A program that loads a library and calls it. It runs in another process, because it may crash.
_TRIAL = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.kernels_in_use.restype = ctypes.c_char_p
print(library.kernels_in_use())
"""


def compiler() -> tuple[str, ...] | None:
    """Finds the C++ compiler: its program and the arguments in CXX, or None."""
    named = settings.compiler()
    if named is None:
        return next(((program,) for program in map(shutil.which, COMPILERS) if program), None)
    if program := shutil.which(named):  # a path may have spaces
        return (program,)
    first, *arguments = _split(named)
    program = shutil.which(first)
    return (program, *arguments) if program else None


def find(folder: Path) -> Path | None:
    """Finds the library in `folder` that was built from this source for this JAX, or None.

    This does not need a compiler. `library.load` checks whether the file is complete.
    """
    return stored.newest(folder, _prefix())


def find_complete(folder: Path) -> Path | None:
    """Like `find`, but returns None for a library that is damaged."""
    return stored.newest_complete(folder, _prefix())


def check(folder: Path) -> None:
    """Raises BuildError unless a compiler starts and the folder can be created."""
    commands.run([[*_require_compiler(), "--version"]], ANSWER_LIMIT)
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)


def build(folder: Path, *, force: bool = False) -> Path:
    """Compiles the library into `folder`, unless the folder already contains it.

    If several processes build at the same time, one compiles and the others wait for it.

    Args:
        folder: The folder for the library.
        force: Whether to compile even if the folder contains the library.

    Returns:
        The file of the library, for `library.load`.

    Raises:
        BuildError: There is no compiler, the compiler fails, or the folder cannot be written.
    """
    command = _require_compiler()
    folder = Path(folder)
    said = commands.run([[*command, "--version"]], ANSWER_LIMIT)[0]
    prefix = f"{_prefix()}-{_hash([said.encode(), *map(os.fsencode, command[1:])])}"
    with _written(folder):
        if not force and (library := stored.newest_complete(folder, prefix)):
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder):
            if not force and (library := stored.newest_complete(folder, prefix)):
                return library
            library = _compiled(command, folder, prefix, baseline=len(command) > 1)
            stored.remove_incomplete(folder, _prefix())
            return library


def build_for_others(folder: Path, prefix: str) -> Path:
    """Compiles a library for other machines with this system, into a folder of a wheel.

    The library runs on every processor of this architecture. It uses the best set of instructions
    that it contains and the processor supports.

    Args:
        folder: The folder for the library.
        prefix: The beginning of its file name.

    Returns:
        The file of the library.

    Raises:
        BuildError: There is no compiler, the compiler fails, or the folder cannot be written.
    """
    command = _require_compiler()
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return _compiled(command, folder, prefix, baseline=True)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turns an OSError inside into a BuildError that names the folder and the remedy."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"the C++ library cannot be written to {folder}: {error.strerror or error};"
            " ROCMFORGE_CPP_FOLDER names another folder"
        ) from error


def _split(named: str) -> list[str]:
    try:
        return shlex.split(named)
    except ValueError as error:
        raise BuildError(f"the variable CXX is {named!r}: {error}") from error


def _require_compiler() -> tuple[str, ...]:
    if (command := compiler()) is not None:
        return command
    named = settings.compiler()
    looked_for = (
        f"the variable CXX names {named!r}, which is not found"
        if named
        else f"none of {', '.join(COMPILERS)} is found"
    )
    raise BuildError(f"no C++ compiler: {looked_for}")


def _compiled(command: tuple[str, ...], folder: Path, prefix: str, *, baseline: bool) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix=_SCRATCH) as scratch:
        made = Path(scratch) / "multiply.so"
        parts = units.units(lambda flags: _knows(command, flags), baseline=baseline)
        objects = [Path(scratch) / f"{i}.o" for i in range(len(parts))]
        _make(objects, [[*command, *part, "-o", str(file)] for part, file in zip(parts, objects)])
        _make([made], [[*command, "-shared", *map(str, objects), "-o", str(made)]])
        _require_working(made, command[0])
        return stored.put(made, folder, prefix)


def _make(files: list[Path], wanted: list[list[str]]) -> None:
    """Runs compilers; raises BuildError unless they wrote the files."""
    commands.run(wanted, COMPILE_LIMIT)
    for file, command in zip(files, wanted):
        if not file.is_file() or file.stat().st_size == 0:
            raise BuildError(
                f"{command[0]} ended with exit code 0 but wrote nothing to {file.name}: it is no"
                " C++ compiler, or the disk is full"
            )


def _require_working(made: Path, program: str) -> None:
    try:
        commands.run([[sys.executable, "-I", "-S", "-c", _TRIAL, str(made)]], ANSWER_LIMIT)
    except BuildError as error:
        reason = str(error).splitlines()[-1]
        raise BuildError(
            f"the library that {program} made does not load on this machine: {reason}"
        ) from error


def _knows(command: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    """Returns whether a compiler accepts the flags."""
    return commands.succeeds([*command, *flags, "-E", "-x", "c++", os.devnull], ANSWER_LIMIT)


@contextlib.contextmanager
def _only_builder(folder: Path) -> Iterator[None]:
    """Waits until no other process builds in the folder, and removes the leftovers of killed ones.

    On a file system without locks, several processes may build at the same time. Each of them
    compiles in its own folder.
    """
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl is None:
                raise OSError("no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for left in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _prefix() -> str:
    """Returns a name with a hash of everything that determines the library except the compiler."""
    sources = sorted(path for path in units.SOURCES.iterdir() if path.suffix in (".cc", ".h"))
    parts = [path.read_bytes() for path in (*sources, Path(units.__file__))]
    parts += [version("jaxlib").encode(), platform.machine().encode()]
    return f"multiply-{_hash(parts)}"


def _hash(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
