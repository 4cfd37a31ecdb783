"""The translation units of the C++ library and their flags.

The name of a library contains a hash of this file. So only code that affects the library belongs
here.
"""

import platform
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *_AVX2,
    *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni")),
    "-mprefer-vector-width=512",
)
#: Compiler flags of each instruction set that `kernels.cc` is compiled for, by machine.
#: `processor.cc` chooses one of them. A set that the compiler does not support is left out.
_VARIANTS = {
    "x86_64": {
        "avx512": _AVX512,
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
    }
}
#: Compiler flags of `amx.cc`, which replaces a part of the variant "avx512".
_AMX = (*_AVX512, "-mamx-tile", "-mamx-int8")
#: Custom calls, which include the headers of JAX.
_CALLS = ("multiply.cc", "experts.cc", "attention.cc", "recurrence.cc", "dense.cc")
#: Flags for the instructions that every processor of a machine supports. They override a
#: "-march=native" in CXX: an older processor may share the home folder, and the library in it.
_BASELINE = {"x86_64": ("-march=x86-64",)}


def units(knows: Callable[[tuple[str, ...]], bool], *, baseline: bool) -> list[list[str]]:
    """Lists the compiler's arguments for each translation unit, without an output.

    Args:
        knows: A function that returns whether the compiler accepts some flags.
        baseline: Whether to compile for the oldest processor of this machine's architecture, and
            not for the compiler's default.
    """
    variants = {
        name: flags for name, flags in _VARIANTS.get(platform.machine(), {}).items() if knows(flags)
    } | {"plain": ()}
    kernels = [
        ("kernels.cc", (*flags, f"-DVARIANT=kernels_{name}")) for name, flags in variants.items()
    ]
    if "avx512" in variants and knows(_AMX):
        variants["amx"] = _AMX
        kernels.append(("amx.cc", _AMX))
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
    """Returns the folder of JAX's headers like `jax.ffi.include_dir()`, without importing JAX."""
    import jaxlib

    return str(Path(*jaxlib.__path__) / "include")
