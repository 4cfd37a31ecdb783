"""The AMD GPUs that programs are compiled for, as XLA wants them described."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A card.

    isa: LLVM's name of the architecture; features: those its code objects carry,
    ":sramecc+:xnack-".

    wave: threads of a wave. units: compute units. bandwidth: of the memory, GB/s. l2: MiB. clock:
    GHz. memory: GiB. lds: bytes of local data share that one workgroup may have.
    """

    card: str
    isa: str
    wave: int
    units: int
    bandwidth: int
    l2: int
    clock: float
    memory: int
    features: str = ""
    lds: int = 64 << 10

    @property
    def triple(self) -> str:
        """How a code object for this target is marked, without the part before it that LLVM
        versions write differently.
        """
        return f"-{self.isa}{self.features}"

    def config(self) -> str:
        """The text form of XLA's GpuTargetConfigProto."""
        info = {
            "threads_per_block_limit": MAX_THREADS,
            "threads_per_warp": self.wave,
            "shared_memory_per_block": self.lds,
            "shared_memory_per_block_optin": self.lds,
            "shared_memory_per_core": self.lds,
            "threads_per_core_limit": 2048,
            "core_count": self.units,
            "fpus_per_core": 128,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65536,
            "block_dim_limit_z": 65536,
            "memory_bandwidth": self.bandwidth * 10**9,
            "l2_cache_size": self.l2 << 20,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory << 30,
            "registers_per_core_limit": 131072,
            "registers_per_block_limit": 131072,
        }
        fields = " ".join(f"{name}: {value}" for name, value in info.items())
        architecture = f'rocm_compute_capability {{ gcn_arch_name: "{self.isa}{self.features}" }}'
        return (
            f'gpu_device_info {{ {fields} {architecture} }} platform_name: "ROCM" dnn_version_info'
            f' {{ }} device_description_str: "{self.card}"'
        )


#: Most threads of a workgroup. XLA does not check it for kernels that come from Triton.
MAX_THREADS = 1024
_SERVER = dict(wave=64, features=":sramecc+:xnack-")
TARGETS = {
    target.isa: target
    for target in (
        Target("MI250", "gfx90a", units=110, bandwidth=1638, l2=8, clock=1.7, memory=64, **_SERVER),
        Target(
            "MI300X", "gfx942", units=304, bandwidth=5300, l2=4, clock=2.1, memory=192, **_SERVER
        ),
        Target(
            "RX 7900 XTX", "gfx1100", wave=32, units=48, bandwidth=960, l2=6, clock=2.5, memory=24
        ),
        Target(
            "RX 9070 XT", "gfx1201", wave=32, units=32, bandwidth=640, l2=8, clock=2.9, memory=16
        ),
    )
}
