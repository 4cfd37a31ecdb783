"""Finds actual and possible problems of a machine, with remedies."""

import dataclasses
from collections.abc import Iterator

from rocmforge_jax.cli.machine import Facts
from rocmforge_jax.settings import named_in

#: JAX release -> ROCm version that its extra `rocm` requires. ROCM_10: the same for `rocm10`.
ROCM_OF_JAX = {"0.10": "7.2", "0.12": "7.14"}
ROCM_10 = "10.1"
#: The plugins of JAX, without "-pjrt" and "-plugin".
_PLUGINS = ("jax-rocm7", "jax-rocm10", "jax-cuda13")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of a machine.

    Attributes:
        what: What is wrong, or may go wrong.
        remedy: What to do.
        certain: Whether the problem was found here; otherwise it is known of similar machines.
    """

    what: str
    remedy: str
    certain: bool


def problems(facts: Facts) -> Iterator[Problem]:
    """Yields the problems of a machine, certain ones first."""
    jax_version = facts.versions.get("jax", "")
    rocm = next(
        (needed for prefix, needed in ROCM_OF_JAX.items() if jax_version.startswith(prefix + ".")),
        "of its release notes",
    )
    yield from _broken(facts)
    if facts.platform == "cpu" and facts.amd:
        yield Problem(
            "there is an AMD GPU, but jax computes on the CPU (`jax[rocm]` no longer exists: pip"
            " only warns and installs CPU jax)",
            f"pip install 'rocmforge-jax[rocm]', and ROCm {rocm} from the system's packages or"
            f" AMD's index for jax {jax_version}, or 'rocmforge-jax[rocm10]' with ROCm {ROCM_10}"
            " and Python 3.12; the packages named rocm and rocm-sdk on the public index are"
            " placeholders",
            True,
        )
    if facts.platform == "cpu" and facts.nvidia:
        yield Problem(
            "there is an NVIDIA GPU, but jax computes on the CPU",
            "pip install 'rocmforge-jax[cuda]'",
            True,
        )
    installed = {
        name: facts.versions[name]
        for name in (f"{plugin}-{part}" for plugin in _PLUGINS for part in ("pjrt", "plugin"))
        if facts.versions.get(name, "not installed") != "not installed"
    }
    if {"jax-rocm7-plugin", "jax-rocm10-plugin"} <= installed.keys():
        yield Problem(
            "jax-rocm7-plugin and jax-rocm10-plugin are both installed; jax takes one for ROCm",
            "pip uninstall those that are not for the ROCm of this machine",
            True,
        )
    for plugin, version in installed.items():
        if version.split(".")[:2] != jax_version.split(".")[:2]:
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


def _broken(facts: Facts) -> Iterator[Problem]:
    """Yields problems that prevent programs from starting, or make them slow."""
    if facts.failure:
        yield Problem(f"jax does not start: {facts.failure}", _start_remedy(facts), True)
    for message in facts.logged:
        yield Problem(
            f"jax warns at its start: {message}",
            "if that is about a plugin, pip uninstall it or install the one of this jax",
            True,
        )
    if facts.setting:
        yield Problem(facts.setting, "unset ROCMFORGE_BACKEND", True)
    refused = [text for text in facts.operations.values() if text.startswith("cannot run: ")]
    if refused:
        yield Problem(
            f"ROCMFORGE_BACKEND asks for a backend that {refused[0]}",
            "unset ROCMFORGE_BACKEND",
            True,
        )
    if facts.cpp_folder and facts.library != "complete":
        yield Problem(
            f"ROCMFORGE_CPP_FOLDER is {facts.cpp_folder}, which cannot be written",
            "make it writable, name another folder, or unset ROCMFORGE_CPP_FOLDER",
            True,
        )
    if facts.platform in ("cpu", "none") and facts.library != "complete":
        install = "" if facts.compiler else "install a C++ compiler (or name one with CXX), then "
        yield Problem(
            f"the C++ library is {facts.library}: a CPU computes several times slower"
            + ("" if facts.compiler else ", and there is no C++ compiler"),
            f"{install}rocmforge-jax build-native",
            True,
        )
    if facts.caches:
        yield Problem(
            f"{facts.caches} cannot be written: what is compiled is compiled again at each start",
            "make it writable, or name another folder with XDG_CACHE_HOME",
            True,
        )


def _start_remedy(facts: Facts) -> str:
    """Returns the remedy if JAX does not start: most often an environment variable is wrong."""
    asked = facts.environment.get("JAX_PLATFORMS") or facts.environment.get("JAX_PLATFORM_NAME")
    if facts.xla_flags and "XLA_FLAGS" in (facts.failure or ""):
        return f"unset XLA_FLAGS, which is {facts.xla_flags!r}"
    if asked:
        return f"unset JAX_PLATFORMS, which is {asked!r}, or install the plugin for it"
    named = named_in(facts.failure or "", facts.environment)
    if named:
        return f"unset {named}, which is {facts.environment[named]!r}"
    return "pip install --force-reinstall rocmforge-jax, and uninstall plugins that it names"


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
