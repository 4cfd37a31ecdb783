"""Gathers the facts of this machine for `doctor`, whatever state it is in."""

import dataclasses
import json
import os
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
#: Seconds after which a start of jax is taken for one that hangs, say in a driver.
START_LIMIT = 180.0
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rocmforge_jax.cli import probe
probe.main()
"""


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the checks look at.

    Attributes:
        versions: Package -> version or "not installed".
        devices: Platform, kind and memory of each device that jax has.
        amd: Whether the system has the device node of AMD's driver.
        nvidia: Whether it has that of NVIDIA's.
        xla_flags: XLA_FLAGS.
        environment: The variables of JAX that the user has set.
        operations: Operation -> what it runs on.
        failure: Why jax does not start, None where it does.
        logged: Warnings of jax from its start.
        setting: What is wrong with a variable of this package, None where nothing is.
        library: "complete", "damaged" or "missing": the C++ library.
        compiler: Whether there is a C++ compiler.
        caches: The user's cache folder where nothing can be written there, None where it can.
        cpp_folder: The same of the folder that ROCMFORGE_CPP_FOLDER names.
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
    """Returns the facts of this machine. Starts jax in a process of its own."""
    probed, failure = _probed()
    folder, cpp_folder = settings.cache_folder(), settings.cpp_folder()
    cpp_is_named = folder not in cpp_folder.parents
    return Facts(
        versions={"python": sys.version.split()[0]}
        | {name: common.version(name) for name in PACKAGES},
        devices=probed.get("devices", []),
        amd=Path("/dev/kfd").exists(),
        nvidia=Path("/dev/nvidiactl").exists(),
        xla_flags=settings.xla_flags(),
        environment=settings.jax_variables(),
        operations=probed.get("operations", {}),
        failure=failure,
        logged=tuple(probed.get("logged", ())),
        setting=_setting(),
        library=_library(),
        compiler=_has_compiler(),
        caches=None if _can_write(folder) else folder,
        cpp_folder=cpp_folder if cpp_is_named and not _can_write(cpp_folder) else None,
    )


def _probed() -> tuple[dict, str | None]:
    """Returns what `probe` found, or why it found nothing."""
    try:
        with interrupts.raised():  # ends the process
            ran = subprocess.run(
                [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=START_LIMIT,
            )
    except subprocess.TimeoutExpired:
        return {}, f"it did not start within {START_LIMIT:.0f} s"
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1]), None
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    how = "exit code" if ran.returncode > 0 else "signal"
    return {}, f"{_reason(lines)} ({how} {abs(ran.returncode)})"


def _reason(lines: list[str]) -> str:
    """Returns the line of a traceback, or of a fatal message of XLA's, that says why."""
    fatal = [line for line in lines if line.startswith("F")]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    found = fatal or errors or lines or ["it printed nothing"]
    return found[-1].strip()[:500]


def _setting() -> str | None:
    try:
        settings.backend()
    except settings.SettingError as error:
        return str(error)
    return None


def _library() -> str:
    folder = settings.cpp_folder()
    if (build.find(folder) or packaged.find()) is None:
        return "missing"
    whole = build.find_complete(folder) if build.find(folder) else packaged.find_complete()
    return "complete" if whole else "damaged"


def _has_compiler() -> bool:
    try:
        return build.compiler() is not None
    except BuildError:  # CXX is no command line
        return False


def _can_write(folder: Path) -> bool:
    """Returns whether a folder can be made and written, without making it."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, StopIteration):
        return False
