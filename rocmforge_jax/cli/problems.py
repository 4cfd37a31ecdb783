"""Finds actual and possible problems of a machine, with remedies."""

from collections.abc import Iterator

from rocmforge_jax.cli import plugins
from rocmforge_jax.cli.machine import Facts
from rocmforge_jax.cli.problem import Problem
from rocmforge_jax.settings import named_in


def problems(facts: Facts) -> Iterator[Problem]:
    """Yields the problems of a machine, certain ones first."""
    yield from _broken(facts)
    yield from plugins.problems(facts)
    if facts.on_rocm:
        yield from _rocm(facts, facts.versions.get("jax", ""))
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
    if facts.xla_flags and "XLA_FLAGS" in (facts.failure or ""):
        return f"unset XLA_FLAGS, which is {facts.xla_flags!r}"
    if remedy := plugins.platform_remedy(facts):
        return remedy
    named = named_in(facts.failure or "", facts.environment)
    if named:
        return f"unset {named}, which is {facts.environment[named]!r}"
    return plugins.start_remedy(facts) or (
        "pip install --force-reinstall rocmforge-jax, and uninstall plugins that it names"
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
