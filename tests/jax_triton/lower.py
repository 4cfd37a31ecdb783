"""Lower a GEMV with `jax_triton.triton_call` for an AMD GPU that is not there, and print what its
code object says: `python -m tests.jax_triton.lower FOLDER TARGET PROGRAM`.

FOLDER has Triton, jax-triton and JAX's ROCm plugin. The plugin's launcher is loaded with stand-ins
for ROCm. What it would ask the GPU is answered here.
"""

import ctypes
import functools
import importlib
import json
import re
import sys
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxlib import gpu_triton

from pallas_kernels import jax_triton as kernels
from pallas_kernels.qmatmul import Weight
from pallas_kernels.targets import Target
from tests.jax_triton.compile import numbers_of, operands
from tests.rocm import stand_ins

_CALL = re.compile(
    r'stablehlo\.custom_call @triton_kernel_call\(.*backend_config = "((?:\\.|[^"])*)"'
)

#: The file of a code object, by its name in a launch.
_FILE = re.compile(re.escape(tempfile.gettempdir()).encode() + rb"/tmp\w+")


def main(folder: str, name: str, program: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    sys.path.append(folder)  # behind the installed packages
    (launcher,) = Path(folder).glob("jax_rocm*_plugin/_triton*.so")
    with tempfile.TemporaryDirectory() as libraries:
        for library in stand_ins.build(launcher, Path(libraries)):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    importlib.reload(gpu_triton)  # jax has imported it without the launcher
    gpu_triton.get_arch_details = lambda device: f"{name}:sramecc+:xnack-"
    gpu_triton.get_compute_capability = lambda device: 0
    x, weight = operands(program)
    call = functools.partial(
        kernels.multiply, dtype=jnp.float32, target=Target("rocm", name), through="triton_call"
    )
    traced = jax.jit(lambda x, planes: call(x, Weight(planes, weight.packing), mode=x.mode)).trace(
        x, weight.planes
    )
    text = traced.lower(lowering_platforms=("rocm",)).as_text()
    (escaped,) = _CALL.findall(text)
    launch = zlib.decompress(_unescaped(escaped))
    # The launch names a temporary file of this machine, which has the code object.
    (path,) = {Path(match.decode()) for match in _FILE.findall(launch)}
    print(json.dumps(numbers_of(path.read_bytes())))
    path.unlink()


def _unescaped(text: str) -> bytes:
    """The bytes of a string of MLIR, in which unprintable ones are two hexadecimal digits."""

    def byte(match):
        return bytes.fromhex(match[1].decode()) if len(match[1]) == 2 else match[1]

    return re.sub(rb"\\([0-9A-F]{2}|.)", byte, text.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
