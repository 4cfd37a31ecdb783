"""Reads every environment variable of the package. Does not import JAX.

The command line also honours JAX's own variables, which JAX reads itself.
"""

import os
from collections.abc import Iterable
from pathlib import Path

#: The backends in the order in which they are tried.
BACKENDS = ("pallas", "cpp", "xla")


class SettingError(ValueError):
    """Raised if an environment variable has an invalid value."""


def backend() -> str:
    """Returns ROCMFORGE_BACKEND: "auto" (the default) or the one backend that a new model uses."""
    choice = os.environ.get("ROCMFORGE_BACKEND") or "auto"
    if choice not in ("auto", *BACKENDS):
        raise SettingError(
            f"ROCMFORGE_BACKEND must be one of auto, {', '.join(BACKENDS)}, got {choice!r}"
        )
    return choice


def cpp_folder() -> Path:
    """Returns the folder of the C++ library: ROCMFORGE_CPP_FOLDER, or one in the user's cache."""
    named = os.environ.get("ROCMFORGE_CPP_FOLDER")
    if not named:
        return cache_folder() / "cpp"
    try:
        return Path(named).absolute()
    except FileNotFoundError:  # the working folder was removed
        return Path(named)


def cache_folder() -> Path:
    """Returns the user's cache folder: $XDG_CACHE_HOME/rocmforge-jax, by default in ~/.cache.

    A relative path in the variable is ignored, as the XDG specification requires.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if named.is_absolute():
        return named / "rocmforge-jax"
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the user has no entry in the system
        home = Path()
    if not home.is_absolute():
        return Path(os.devnull) / "rocmforge-jax"  # cannot be created, which callers handle
    return home / ".cache" / "rocmforge-jax"


def compiler() -> str | None:
    """Returns the C++ compiler in CXX, which may include arguments, or None if it is empty."""
    return os.environ.get("CXX", "").strip() or None


def xla_flags() -> str:
    """Returns XLA_FLAGS, the options of the XLA compiler."""
    return os.environ.get("XLA_FLAGS", "")


def plain_terminal() -> bool:
    """Returns whether terminals should get plain text: NO_COLOR is set, or TERM is "dumb"."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def jax_platforms() -> str | None:
    """Returns JAX_PLATFORMS, the platforms that JAX may use, or None for all."""
    return os.environ.get("JAX_PLATFORMS") or None


def jax_variables() -> dict[str, str]:
    """Returns the variables of JAX that the user has set, for `doctor`."""
    prefixes = ("XLA_PYTHON_CLIENT_", "JAX_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of this process with some variables replaced, for another one."""
    return {**os.environ, **variables}


def gpu_variables() -> dict[str, str]:
    """Returns the variables that choose GPUs, for ROCm and CUDA, that the user has set."""
    names = (
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "HSA_OVERRIDE_GFX_VERSION",
        "CUDA_VISIBLE_DEVICES",
    )
    return {name: os.environ[name] for name in names if name in os.environ}


def named_in(text: str, variables: Iterable[str]) -> str | None:
    """Returns the first variable whose name occurs in a message, in any case, or None."""
    return next((name for name in variables if name.lower() in text.lower()), None)
