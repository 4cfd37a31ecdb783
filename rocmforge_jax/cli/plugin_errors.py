"""Prints one line for a GPU plugin that does not start, in place of JAX's traceback."""

import logging
import sys

from rocmforge_jax import settings

_REMEDY = "computing on the CPU; `rocmforge-jax doctor` says why"


_NOT_INSTALLED = "An NVIDIA GPU may be present"
#: How JAX's messages about a plugin that does not start begin.
_BEGINNINGS = (
    "Jax plugin configuration error",
    "CUDA backend failed to initialize",
    _NOT_INSTALLED,
)


def shorten() -> None:
    """Shortens what JAX logs about plugins in this process. Call it before JAX starts."""
    logger = logging.getLogger("jax._src.xla_bridge")
    if not any(isinstance(one, _PluginErrors) for one in logger.filters):
        logger.addFilter(_PluginErrors())


class _PluginErrors(logging.Filter):
    """Replaces the errors of plugins by one line, and drops them if the user chose a platform.

    If the chosen platform does not start, JAX raises an error, which is printed.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if not text.startswith(_BEGINNINGS):
            return True
        if not settings.jax_variables().get("JAX_PLATFORMS"):
            print(f"rocmforge-jax: warning: {_found(text, record)}: {_REMEDY}", file=sys.stderr)
        return False


def _found(text: str, record: logging.LogRecord) -> str:
    """Returns what is wrong, with the reason that the plugin gave unless it found no GPU."""
    if text.startswith(_NOT_INSTALLED):
        return "JAX has no plugin for this machine's NVIDIA GPU"
    reason = f"{record.exc_info[1]}" if record.exc_info else text.partition(": ")[2]
    lowered = f"{text} {reason}".lower()
    maker = "AMD" if "rocm" in lowered else "NVIDIA" if "cuda" in lowered else None
    if not maker:
        return "a plugin of JAX does not start" + f": {reason}" * bool(reason)
    if not reason or "gpus were found" in lowered or "no supported devices" in lowered:
        return f"no {maker} GPU found"
    return f"the plugin for {maker} GPUs does not start ({' '.join(reason.split())})"
