"""Gathers facts about this machine for `doctor`, even if JAX does not work."""

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from rocmforge_jax import settings
from rocmforge_jax.cli import common, interrupts
from rocmforge_jax.cpp import build, packaged
from rocmforge_jax.cpp.commands import BuildError

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
    "jax-rocm10-pjrt",
    "jax-rocm10-plugin",
    "jax-cuda13-pjrt",
    "jax-cuda13-plugin",
    "huggingface_hub",
)
#: Packages that are listed if they are installed: plugins of any generation, and ROCm itself.
_ALSO = re.compile(r"jax-(rocm|cuda)\d+-(pjrt|plugin)|rocm(-sdk.*)?")
#: Seconds after which JAX's start is assumed to hang, for example in a driver.
START_LIMIT = 180.0
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rocmforge_jax.cli import probe
probe.main()
"""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts that the checks of `problems` use.

    Attributes:
        versions: Package -> version or "not installed".
        devices: Platform, kind and memory of each JAX device.
        amd: Whether the system has the device node of AMD's driver.
        nvidia: Whether the system has the device node of NVIDIA's driver.
        xla_flags: The variable XLA_FLAGS.
        environment: The variables of JAX and of GPUs that the user has set.
        operations: Operation -> its backend and the reason.
        failure: Why JAX does not start, or None.
        logged: Warnings that JAX logged at its start.
        setting: What is wrong with a variable of this package, or None.
        library: State of the C++ library: "complete", "damaged" or "missing".
        compiler: Whether a C++ compiler exists.
        caches: The user's cache folder if it cannot be written, otherwise None.
        cpp_folder: The folder in ROCMFORGE_CPP_FOLDER if it cannot be written, otherwise None.
    """

    versions: dict[str, str]
    devices: list[dict]
    amd: bool
    nvidia: bool
    xla_flags: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    operations: dict[str, str] = dataclasses.field(default_factory=dict)
    failure: str | None = None
    logged: tuple[str, ...] = ()
    setting: str | None = None
    library: str = "complete"
    compiler: bool = True
    caches: Path | None = None
    cpp_folder: Path | None = None

    @property
    def platform(self) -> str:
        """JAX's name for the platform of the first device; "none" without a device."""
        return self.devices[0]["platform"] if self.devices else "none"

    @property
    def on_rocm(self) -> bool:
        """Whether the devices are AMD GPUs."""
        kinds = " ".join(device["kind"].lower() for device in self.devices)
        return self.platform in ("rocm", "gpu") and ("gfx" in kinds or "amd" in kinds)


def gather() -> Facts:
    """Returns the facts about this machine. Starts JAX in a separate process."""
    probed, failure = _probed()
    logged = probed.get("logged", ())
    if failure and "JAX_PLATFORMS" in settings.jax_variables():  # it hides a plugin's own error
        logged = _probed(JAX_PLATFORMS="")[0].get("logged", ())
    folder, cpp_folder = settings.cache_folder(), settings.cpp_folder()
    cpp_is_named = folder not in cpp_folder.parents
    return Facts(
        versions={"python": sys.version.split()[0]}
        | {name: common.version(name) for name in (*PACKAGES, *_also_installed())},
        devices=probed.get("devices", []),
        amd=Path("/dev/kfd").exists(),
        nvidia=Path("/dev/nvidiactl").exists(),
        xla_flags=settings.xla_flags(),
        environment=settings.jax_variables() | settings.gpu_variables(),
        operations=probed.get("operations", {}),
        failure=failure,
        logged=tuple(logged),
        setting=_setting(),
        library=_library(),
        compiler=_has_compiler(),
        caches=None if _can_write(folder) else folder,
        cpp_folder=cpp_folder if cpp_is_named and not _can_write(cpp_folder) else None,
    )


def _also_installed() -> list[str]:
    """Returns the names of installed packages that matter for GPUs but are not in PACKAGES."""
    names = {
        (found.name or "").lower().replace("_", "-") for found in importlib.metadata.distributions()
    }
    return sorted(name for name in names - {*PACKAGES} if _ALSO.fullmatch(name))


def _probed(**variables: str) -> tuple[dict, str | None]:
    """Returns the output of `probe`, and why it failed, or None.

    Args:
        variables: Environment variables that replace the user's.
    """
    try:
        with interrupts.raised():  # so that a signal also ends the started process
            ran = subprocess.run(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=START_LIMIT,
                env=settings.environment(**variables),
            )
    except subprocess.TimeoutExpired:
        return {}, f"it did not start within {START_LIMIT:.0f} s"
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1]), None
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    how = "exit code" if ran.returncode > 0 else "signal"
    return {}, f"{_reason(lines)} ({how} {abs(ran.returncode)})"


def _reason(lines: list[str]) -> str:
    """Returns the line of a traceback, or of a fatal XLA message, that contains the reason."""
    fatal = [line for line in lines if line.startswith("F")]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    found = (fatal or errors or lines or ["it printed nothing"])[-1].strip()
    if found == "AssertionError":  # what JAX raises for a platform without a plugin
        return "no plugin for JAX_PLATFORMS is installed"
    return found[:500]


def _setting() -> str | None:
    try:
        settings.backend()
    except settings.SettingError as error:
        return str(error)
    return None


def _library() -> str:
    folder = settings.cpp_folder()
    if build.find(folder):
        return "complete" if build.find_complete(folder) else "damaged"
    if packaged.find():
        return "complete" if packaged.find_complete() else "damaged"
    return "missing"


def _has_compiler() -> bool:
    try:
        return build.compiler() is not None
    except BuildError:  # CXX is not a valid command line
        return False


def _can_write(folder: Path) -> bool:
    """Returns whether a folder could be created and written, without creating it."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, StopIteration):
        return False
