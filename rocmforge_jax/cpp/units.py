"""The translation units of the C++ library and their flags.

The name of a library holds a hash of this file, so only what changes the library belongs here.
"""

import platform
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
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
#: Custom calls, which include the headers of JAX.
_CALLS = ("multiply.cc", "experts.cc", "attention.cc", "recurrence.cc")
#: What every processor of a machine runs. It takes back a "-march=native" of the user's: a home
#: folder, and the library in it, may be shared with an older processor.
_BASELINE = {"x86_64": ("-march=x86-64",)}


def units(knows: Callable[[tuple[str, ...]], bool], *, baseline: bool) -> list[list[str]]:
    """Lists the compiler's arguments for each translation unit, without an output.

    Args:
        knows: Returns whether the compiler accepts the flags.
        baseline: Whether the compiler's own choice of a processor is replaced by the oldest one.
    """
    variants = {
        name: flags for name, flags in _VARIANTS.get(platform.machine(), {}).items() if knows(flags)
    } | {"plain": ()}
    kernels = [
        ("kernels.cc", (*flags, f"-DVARIANT=kernels_{name}")) for name, flags in variants.items()
    ]
    calls = [(name, ("-isystem", _headers())) for name in _CALLS]
    others = [
        ("older_systems.cc", ()),
        ("repack.cc", ()),
        ("processor.cc", tuple(f"-DHAS_{name}" for name in variants)),
    ]
    common = (*_FLAGS, *(_BASELINE.get(platform.machine(), ()) if baseline else ()))
    return [
        [*common, *flags, "-c", str(SOURCES / name)] for name, flags in (*kernels, *calls, *others)
    ]


def _headers() -> str:
    """Returns the folder of the headers of JAX: `jax.ffi.include_dir()`, without importing JAX."""
    import jaxlib

    return str(Path(*jaxlib.__path__) / "include")
