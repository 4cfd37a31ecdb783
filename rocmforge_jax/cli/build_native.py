"""The command `build-native`."""

import sys
import time
from pathlib import Path

from rocmforge_jax import settings
from rocmforge_jax.cli import common, interrupts
from rocmforge_jax.cpp import build, packaged
from rocmforge_jax.cpp.commands import BuildError

NAME = "build-native"
HELP = "Compile the C++ library that makes CPUs several times faster; needs a C++ compiler."


#: The formats of the matrices that are measured.
TUNED_WITH = ("Q4_0", "Q8_0")


def add_arguments(parser):
    parser.add_argument(
        "--if-possible", action="store_true", help="where there is no compiler, say so and succeed"
    )
    parser.add_argument("--force", action="store_true", help="compile also what is there already")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure again how this processor reads memory fastest; takes seconds",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: library, instructions, prefetch, seconds",
    )


def run(options):
    start = time.perf_counter()
    try:
        library, is_new = _library(options.force, options.tune)
    except BuildError as error:
        if not options.if_possible:
            raise common.UsageError(str(error)) from error
        print(f"not built, plain XLA computes instead: {error}", file=sys.stderr)
        return
    used, why = _tried(is_new)
    prefetch = _tuned(library, is_new or options.tune) if used else None
    if options.json:
        common.print_json(
            {
                "library": str(library),
                "instructions": used,
                "prefetch": prefetch,
                "seconds": time.perf_counter() - start,
            }
        )
    else:
        print(f"{library}: {used or why}")


def _library(force, tune) -> tuple[Path, bool]:
    """Returns the library, and whether it was just compiled. Does not need a working JAX."""
    folder = settings.cpp_folder()
    if not force and (found := build.find_complete(folder)):
        return found, False
    if tune and not force and (found := packaged.find_complete()):
        return found, False
    build.check(folder)
    print("compiling the C++ library, which takes a minute or two ...", file=sys.stderr, flush=True)
    with interrupts.raised():  # so that the compilers are stopped and their files removed
        return build.build(folder, force=force), True


def _tried(is_new) -> tuple[str | None, str]:
    """Returns the instruction set that the library uses here, or the reason if it is not used."""
    from rocmforge_jax.backends import cpp
    from rocmforge_jax.quant import word_packed

    try:
        used = cpp.instructions()
    except NotImplementedError as reason:  # for example on a machine with a GPU
        return None, f"not used: {reason}"
    if is_new:
        print("trying its products ...", file=sys.stderr, flush=True)
        cpp.try_all(word_packed.packings())
    return used, ""


def _tuned(library: Path, measure: bool) -> dict:
    """Returns the prefetch settings of products, after measuring them if `measure` is set."""
    from rocmforge_jax.backends import cpp
    from rocmforge_jax.cpp.library import prefetch
    from rocmforge_jax.formats import get
    from rocmforge_jax.quant import word_packed

    if measure:
        print("measuring how this processor reads memory fastest ...", file=sys.stderr, flush=True)
        for used, speed in cpp.tune(word_packed.packing(get(name)) for name in TUNED_WITH).items():
            print(f"  prefetch {used}: {speed / 1e9:.1f} GB/s", file=sys.stderr)
    return prefetch(library)._asdict()
