"""Compile programs for one target: `python -m tests.rocm.compile PLUGIN TARGET PROGRAM...`, a JSON
line for each on stdout.

A process of its own: a plugin cannot be unloaded, and a compiler that aborts should not take the
tests with it.
"""

import functools
import json
import sys
import traceback
from pathlib import Path

import jax

from pallas_kernels import targets
from rocmforge_jax.quant import default_layout
from tests.rocm import compiler, programs
from tests.rocm.targets import TARGETS


def main(plugin: str, target: str, *names: str) -> None:
    # What is computed here, such as the planes of the demo, is computed on the CPU.
    jax.config.update("jax_platforms", "cpu")
    compiler.load_plugin(Path(plugin))
    layout_of = functools.partial(default_layout, device=compiler.device(TARGETS[target]))
    for name in names:
        record = {"program": name, "target": target, "jax": jax.__version__}
        try:
            with targets.use(targets.Target("rocm", target)):
                record |= compiler.compile_for(TARGETS[target], *programs.program(name, layout_of))
        except Exception as error:  # whatever the compiler says is the finding
            traceback.print_exc()
            record["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
