"""The command `doctor`."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from rocmforge_jax.cli import common

NAME = "doctor"
HELP = "Show versions, devices, what each operation runs on, and known problems with remedies."
PACKAGES = (
    "rocmforge-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "gguf",
    "tokenizers",
    "jax-rocm7-pjrt",
    "jax-rocm7-plugin",
    "jax-cuda13-pjrt",
    "jax-cuda13-plugin",
    "huggingface_hub",
)
#: The ROCm that each release of JAX asks for.
ROCM_OF_JAX = {"0.10": "7.2", "0.12": "7.14"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the checks look at.

    versions: package -> version or "not installed". devices: platform, kind and memory of each
    device jax sees. amd, nvidia: the system has the driver's device node. xla_flags, environment:
    what the user has set.
    """

    versions: dict[str, str]
    devices: list[dict]
    amd: bool
    nvidia: bool
    xla_flags: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def platform(self) -> str:
        """JAX's name for the platform of the first device; "none" without a device."""
        return self.devices[0]["platform"] if self.devices else "none"

    @property
    def on_rocm(self) -> bool:
        """Whether the devices are AMD GPUs."""
        kinds = " ".join(device["kind"].lower() for device in self.devices)
        return self.platform in ("rocm", "gpu") and ("gfx" in kinds or "amd" in kinds)


@dataclasses.dataclass(frozen=True)
class Problem:
    """what: what is, or may go, wrong.

    remedy: what to do. certain: it is there now; otherwise it is known of such machines.
    """

    what: str
    remedy: str
    certain: bool


def add_arguments(parser):
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options):
    facts = gather()
    found = list(problems(facts))
    report = {
        "versions": facts.versions,
        "devices": facts.devices,
        "operations": operations(),
        "problems": [dataclasses.asdict(problem) for problem in found],
    }
    if options.json:
        common.print_json(report)
        return
    for title in ("versions", "operations"):
        print(f"{title}:")
        for name, value in report[title].items():
            print(f"  {name:<18} {value}")
    print("devices:")
    for device in facts.devices:
        memory = (
            f", {device['memory_bytes'] / 2**30:.1f} GiB free" if device["memory_bytes"] else ""
        )
        print(f"  {device['platform']:<18} {device['kind']}{memory}")
    print("problems:" if found else "problems: none known")
    for problem in found:
        print(
            f"  {'' if problem.certain else 'known of such machines: '}{problem.what}\n    ->"
            f" {problem.remedy}"
        )


def gather() -> Facts:
    """The facts of this machine. Starts jax."""
    import jax

    from rocmforge_jax.models.plan import available_bytes

    devices = [
        {
            "platform": device.platform,
            "kind": device.device_kind,
            "memory_bytes": available_bytes(device),
        }
        for device in jax.devices()
    ]
    versions = {"python": sys.version.split()[0]} | {
        name: common.version(name) for name in PACKAGES
    }
    from rocmforge_jax import settings

    return Facts(
        versions,
        devices,
        Path("/dev/kfd").exists(),
        Path("/dev/nvidiactl").exists(),
        settings.xla_flags(),
        settings.jax_variables(),
    )


def operations() -> dict[str, str]:
    """Returns what each operation on a Q4_K weight runs on here: what `backends.choose` decides."""
    import jax
    import jax.numpy as jnp

    from rocmforge_jax import formats, nn, settings
    from rocmforge_jax.backends import Numerics, record
    from rocmforge_jax.models import default_dtype
    from rocmforge_jax.quant import QTensor, default_layout, dequantize, matmul, take_rows

    numerics = Numerics(backend=settings.backend())
    fmt = formats.get("Q4_K")
    layout = default_layout(fmt, numerics=numerics)

    def packed(row_bytes):
        return QTensor.from_bytes(row_bytes, fmt, layout=layout)

    def attention(q, starts):
        rule, cache = nn.AttentionRule(1.0), nn.KVState.zeros(1, 1, 64, 256, q.dtype)
        return nn.cached_attention(q, cache, starts, rule, backend=numerics.backend)

    def of(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    by = dict(backend=numerics.backend)
    dtype, rows = default_dtype(), of((256, fmt.block_bytes), jnp.uint8)
    x, ids, q = of((1, 256), dtype), of((1,), jnp.int32), of((1, 1, 4, 64), dtype)
    calls = {
        "dequantize": (lambda rows: dequantize(packed(rows), **by), rows),
        "matmul": (lambda x, rows: matmul(x, packed(rows).T, **by), x, rows),
        "take_rows": (lambda rows, ids: take_rows(packed(rows), ids, **by), rows, ids),
        "attention": (attention, q, ids),
    }
    found = {}
    for name, call in calls.items():
        with record() as decisions:
            try:
                jax.eval_shape(*call)
            except NotImplementedError as reason:  # of a backend that the user has asked for
                found[name] = f"cannot run: {reason}"
            else:
                (decision,) = decisions
                found[name] = f"{decision.choice.name}: {decision.choice.reason}"
    return found | {"planes": layout}


def problems(facts: Facts) -> Iterator[Problem]:
    """What is wrong with a machine, the certain things first."""
    jax_version = facts.versions.get("jax", "")
    rocm = next(
        (needed for prefix, needed in ROCM_OF_JAX.items() if jax_version.startswith(prefix + ".")),
        "of its release notes",
    )
    if facts.platform == "cpu" and facts.amd:
        yield Problem(
            "there is an AMD GPU, but jax computes on the CPU (`jax[rocm]` no longer exists: pip"
            " only warns and installs CPU jax)",
            f"pip install 'rocmforge-jax[rocm]', and ROCm {rocm} from the system's packages or"
            f" AMD's index for jax {jax_version}; the packages named rocm and rocm-sdk on the"
            " public index are placeholders",
            True,
        )
    if facts.platform == "cpu" and facts.nvidia:
        yield Problem(
            "there is an NVIDIA GPU, but jax computes on the CPU",
            "pip install 'rocmforge-jax[cuda]'",
            True,
        )
    for plugin in ("jax-rocm7-pjrt", "jax-rocm7-plugin", "jax-cuda13-pjrt", "jax-cuda13-plugin"):
        version = facts.versions.get(plugin, "not installed")
        if version != "not installed" and version.split(".")[:2] != jax_version.split(".")[:2]:
            yield Problem(
                f"{plugin} is {version}, jax is {jax_version}",
                f"pip install '{plugin}=={jax_version}'",
                True,
            )
    if facts.on_rocm:
        yield from _rocm(facts, jax_version)
    if facts.platform not in ("cpu", "none") and not any(
        name in facts.environment for name in _MEMORY
    ):
        yield Problem(
            "jax takes 75 % of the card's memory at its start",
            "XLA_PYTHON_CLIENT_PREALLOCATE=false, or XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 to take"
            " more",
            False,
        )


_MEMORY = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")


def _rocm(facts, jax_version):
    kinds = " ".join(device["kind"] for device in facts.devices)
    if "gfx103" in kinds and not jax_version.startswith("0.10."):
        yield Problem(
            f"jax {jax_version} refuses RDNA2 cards (gfx103x)",
            "pip install 'jax==0.10.2' with ROCm 7.2",
            True,
        )
    flags = (
        ("--xla_gpu_enable_command_buffer=", "crashes in command buffers (hipGraph), which are on"),
        ("--xla_gpu_autotune_level=0", "crashes of the autotuner on older cards"),
        (
            "--xla_gpu_enable_triton_gemm=false",
            "slow or failing matrix products of Triton; this takes hipBLASLt",
        ),
    )
    for flag, what in flags:
        if flag.split("=")[0] not in facts.xla_flags:
            yield Problem(what, f"XLA_FLAGS={flag}", False)
