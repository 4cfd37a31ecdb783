"""Compiles the C++ sources of `src` into one shared library.

This needs a C++17 compiler and the headers of JAX, but no network. It does not import JAX.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

from rocmforge_jax import settings

SOURCES = Path(__file__).parent / "src"
#: Compilers to look for, in this order. The environment variable CXX names another one.
COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
#: Compiler flags of each set of instructions that `kernels.cc` is compiled for, by machine.
#: `processor.cc` chooses among them. A set unknown to the compiler is left out; "plain" never is.
_VARIANTS = {
    "x86_64": {
        "avx512": (
            *_AVX2,
            *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")),
            "-mprefer-vector-width=512",
        ),
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
    }
}
#: Lines of the output of a compiler that an error repeats.
_LAST_LINES = 20


def compiler() -> str | None:
    """Finds the C++ compiler, or returns None."""
    named = settings.compiler()
    return next(filter(None, map(shutil.which, [named] if named else COMPILERS)), None)


def find(folder: Path) -> Path | None:
    """Finds the library that `build` made in `folder` from this source for this JAX, or None.

    This needs no compiler.
    """
    found = sorted(
        Path(folder).glob(f"multiply-{_source_key()}-*.so"), key=lambda path: path.stat().st_mtime
    )
    return found[-1] if found else None


def build(folder: Path) -> Path:
    """Compiles the library into `folder`, unless an earlier call did.

    Several processes may build at the same time: each compiles in a folder of its own and moves the
    complete library to its final name.

    Args:
        folder: Where to put the library.

    Returns:
        The library, for `library.load`.

    Raises:
        RuntimeError: There is no compiler, or it fails; with the last lines of its output.
    """
    program = compiler()
    if program is None:
        named = settings.compiler()
        looked_for = (
            f"the variable CXX names {named!r}, which is not found"
            if named
            else f"none of {', '.join(COMPILERS)} is found"
        )
        raise RuntimeError(f"no C++ compiler: {looked_for}")
    folder = Path(folder)
    said = _run([[program, "--version"]])[0]
    library = folder / f"multiply-{_source_key()}-{_hash([said.encode()])}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        objects = _objects(program)
        outputs = [str(Path(scratch) / f"{i}.o") for i in range(len(objects))]
        _run(
            [
                [program, *_FLAGS, *flags, "-c", str(SOURCES / name), "-o", output]
                for (name, flags), output in zip(objects, outputs)
            ]
        )
        linked = Path(scratch) / "multiply.so"
        _run([[program, "-shared", *outputs, "-o", str(linked)]])
        os.replace(linked, library)
    return library


def _objects(program: str) -> list[tuple[str, tuple[str, ...]]]:
    """Lists the translation units, which are compiled in parallel: (source, flags)."""
    variants = {
        name: flags
        for name, flags in _VARIANTS.get(platform.machine(), {}).items()
        if _knows(program, flags)
    } | {"plain": ()}
    kernels = [
        ("kernels.cc", (*flags, f"-DVARIANT=kernels_{name}")) for name, flags in variants.items()
    ]
    calls = [(name, ("-isystem", _headers())) for name in ("multiply.cc", "attention.cc")]
    return [
        *kernels,
        *calls,
        ("repack.cc", ()),
        ("processor.cc", tuple(f"-DHAS_{name}" for name in variants)),
    ]


def _knows(program: str, flags: tuple[str, ...]) -> bool:
    """Whether a compiler accepts the flags."""
    return (
        subprocess.run(
            [program, *flags, "-E", "-x", "c++", os.devnull], capture_output=True
        ).returncode
        == 0
    )


def _headers() -> str:
    """Returns the folder of the headers of JAX: `jax.ffi.include_dir()`, without importing JAX."""
    import jaxlib

    return str(Path(jaxlib.__file__).parent / "include")


def _source_key() -> str:
    """Hashes everything that the library is made from except the compiler."""
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cc", ".h"))
    sources.append(Path(__file__))
    return _hash(
        [path.read_bytes() for path in sources]
        + [version("jaxlib").encode(), platform.machine().encode()]
    )


def _hash(parts: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _run(commands: list[list[str]]) -> list[str]:
    """Runs commands in parallel and returns the output of each."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    said = [process.communicate()[0] for process in running]
    for process, command, text in zip(running, commands, said):
        if process.returncode:
            lines = text.strip().splitlines()[-_LAST_LINES:]
            raise RuntimeError(
                "\n".join([f"{command[0]} failed with exit code {process.returncode}:", *lines])
            )
    return said
