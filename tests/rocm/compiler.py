"""XLA's ROCm compiler, from JAX's plugin, without a GPU and without ROCm."""

import ctypes
import re
import tempfile
import time
from pathlib import Path

import jax
from jax._src import xla_bridge
from jax._src.lib import xla_client
from jax.experimental import topologies

from tests.described import as_if_on
from tests.rocm import code_objects, stand_ins
from tests.rocm.targets import Target

#: A launch in XLA's dump of a program: the kernel, its threads, its dynamic local data share.
_LAUNCH = re.compile(r"\] (\S+) grid: \[[\d, ]+\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+)")
_STEP = re.compile(r"^\s*\d+: k(\w+)", re.MULTILINE)
#: Steps of a program that are neither code of its own nor a library's.
_PLAIN_STEPS = {
    "CustomKernel",
    "Kernel",
    "Copy",
    "While",
    "Conditional",
    "Sequential",
    "Memset32BitValue",
    "MemzeroValue",
}


def load_plugin(library: Path) -> None:
    """Make jax know the platform "rocm".

    Where ROCm is missing, stand-ins for its libraries are loaded first.
    """
    try:
        ctypes.CDLL(str(library))
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            for stand_in in stand_ins.build(library, Path(folder)):
                ctypes.CDLL(str(stand_in), mode=ctypes.RTLD_GLOBAL)
    options = dict(xla_client.generate_pjrt_gpu_plugin_options(), platform_name="ROCM")
    xla_bridge.register_plugin("rocm", priority=500, library_path=str(library), options=options)


def device(target: Target):
    """The described device: something to compile for, not to run on."""
    return topologies.get_topology_desc(
        "", platform="rocm", target_config=target.config(), topology="1x1x1"
    ).devices[0]


def compile_for(target: Target, jitted, args) -> dict:
    """Compile a jitted function for a target: what its machine code needs, as numbers.

    args: abstract, or static.
    """
    lowered = lower(jitted, args, device(target), "rocm", target.isa)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        compiled = lowered.compile(
            compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        )
        seconds = time.perf_counter() - start
        (dump,) = Path(folder).glob("*.thunk_sequence.txt")
        steps = dump.read_text()
    memory = compiled.memory_analysis()
    return _code(compiled, steps) | {
        "library_calls": sorted(set(_STEP.findall(steps)) - _PLAIN_STEPS),
        "conditionals": _STEP.findall(steps).count("Conditional"),
        "temp_bytes": memory.temp_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "compile_seconds": round(seconds, 2),
    }


def lower(jitted, args, device, platform: str, kind: str):
    """A jitted function lowered for a described device of a platform.

    args: abstract, or static. kind: as jax names such devices.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)

    def place(a):
        return (
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) if hasattr(a, "shape") else a
        )

    with as_if_on(platform, kind):
        return jitted.trace(*jax.tree.map(place, args)).lower(lowering_platforms=(platform,))


def _code(compiled, steps) -> dict:
    launches = [
        (name, threads.split(", "), int(shared)) for name, threads, shared in _LAUNCH.findall(steps)
    ]
    objects = code_objects.code_objects(compiled._executable.xla_executable.serialize())
    kernels = {kernel.name: kernel for one in objects for kernel in code_objects.kernels(one)}
    shared = {name: max(s for n, _, s in launches if n == name) for name, _, _ in launches}
    return {
        "targets": sorted({code_objects.target(one) for one in objects}),
        "kernels": len(kernels),
        "signed_dot4s": sum(map(code_objects.signed_dot4s, objects)),
        "launched_without_code": sorted({name for name, _, _ in launches} - set(kernels)),
        "code_never_launched": sorted(set(kernels) - {name for name, _, _ in launches}),
        "threads_max": max((int(x) * int(y) * int(z) for _, (x, y, z), _ in launches), default=0),
        "vgprs_max": max((kernel.vgprs for kernel in kernels.values()), default=0),
        "lds_max": max(
            (kernel.lds + shared.get(name, 0) for name, kernel in kernels.items()), default=0
        ),
        "spills": sum(kernel.spills for kernel in kernels.values()),
        "scratch_max": max((kernel.scratch for kernel in kernels.values()), default=0),
    }
