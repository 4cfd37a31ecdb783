"""Compile the C++ library that makes CPUs several times faster; needs a C++ compiler."""

import sys
import time

from rocmforge_jax.cli import common

NAME = "build-native"


def add_arguments(parser):
    parser.add_argument(
        "--if-possible", action="store_true", help="where there is no compiler, say so and succeed"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: library, instructions, seconds"
    )


def run(options):
    from rocmforge_jax.backends import cpp

    start = time.perf_counter()
    try:
        library = cpp.find() or _built()
    except RuntimeError as error:
        if not options.if_possible:
            raise common.UsageError(str(error)) from error
        print(f"not built, plain XLA computes instead: {error}", file=sys.stderr)
        return
    try:
        used = cpp.instructions()
    except NotImplementedError as reason:  # on a GPU's machine, say
        used, why = None, f"not used: {reason}"
    if options.json:
        common.print_json(
            {"library": str(library), "instructions": used, "seconds": time.perf_counter() - start}
        )
    else:
        print(f"{library}: {used or why}")


def _built():
    from rocmforge_jax.backends import cpp
    from rocmforge_jax.quant import word_packed

    print("compiling the C++ library, which takes up to a minute ...", file=sys.stderr, flush=True)
    library = cpp.build_library()
    print("trying its products ...", file=sys.stderr, flush=True)
    cpp.try_all(word_packed.packings())
    return library
