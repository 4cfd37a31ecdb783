"""XLA's CUDA compiler, from JAX's plugin, without a GPU and without CUDA's toolkit, for a described
H100.
"""

import os
import sys
from pathlib import Path

import pytest

#: What XLA asks of a device; NVIDIA's data of the H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture(scope="session")
def h100():
    """The described device.

    The plugin is below ROCMFORGE_CUDA_PLUGIN or in the folder `cuda` of this environment.
    """
    folder = Path(os.environ.get("ROCMFORGE_CUDA_PLUGIN") or Path(sys.prefix) / "cuda")
    found = sorted(folder.resolve().glob("jax_plugins/xla_cuda*/xla_cuda_plugin.so"))
    if not found:
        pytest.fail(
            f"no CUDA plugin below {folder}: run `make test-cuda`, which installs it there, or set"
            " ROCMFORGE_CUDA_PLUGIN"
        )
    import jax
    from jax._src import xla_bridge
    from jax.experimental import topologies

    # Programs cached by another compiler are not what is tested.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_disable_most_optimizations", False)

    xla_bridge.register_plugin("cuda", priority=500, library_path=str(found[0]))
    return topologies.get_topology_desc(
        "", platform="cuda", target_config=H100, topology="1x1x1"
    ).devices[0]
