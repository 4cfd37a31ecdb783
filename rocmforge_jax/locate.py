"""Which file a model's name means, and where files of our own are kept. Imports no jax."""

import hashlib
import itertools
import os
import platform
from pathlib import Path

from rocmforge_jax.settings import cache_folder

#: The file behind the name "demo".
DEMO = Path(__file__).parent / "demo" / "demo.gguf"


def compiled_folder(purpose: str = "xla") -> Path:
    """Where what XLA compiles on this machine is kept.

    Programs for its CPU may have instructions that another lacks which shares the user's folder,
    and XLA's key of a program does not tell them apart: so each kind of processor has a folder.
    """
    return cache_folder() / purpose / hashlib.sha256(_processor().encode()).hexdigest()[:12]


def _processor() -> str:
    """What distinguishes kinds of processors, as far as the system says it."""
    said = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    try:
        with open("/proc/cpuinfo") as file:
            first = itertools.takewhile(str.strip, file)
            return "".join(line for line in first if line.partition(":")[0].strip() in said)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def resolve(path: str | os.PathLike) -> Path:
    """Returns the file that `load` would open.

    That is an existing path, the demo model, or a file of the hub, which is downloaded once.
    """
    if os.path.exists(path):
        return Path(path)
    if os.fspath(path) == "demo":
        return DEMO
    parts = os.fspath(path).split("/")
    if len(parts) >= 3 and parts[-1].endswith(".gguf") and all(parts):
        return _download("/".join(parts[:2]), "/".join(parts[2:]))
    return Path(path)  # open_gguf says what is there instead


def _download(repository: str, filename: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise FileNotFoundError(
            f"no file {repository}/{filename}; to fetch it from the Hugging Face hub: pip install"
            " 'rocmforge-jax[hub]'"
        ) from None
    return Path(hf_hub_download(repository, filename))
