"""Which file a model's name means, and where files of our own are kept. Imports no jax."""

import hashlib
import itertools
import os
import platform
import re
from pathlib import Path

from rocmforge_jax import hub
from rocmforge_jax.gguf.errors import shortened
from rocmforge_jax.settings import cache_folder

#: The file behind the name "demo".
DEMO = Path(__file__).parent / "demo" / "demo.gguf"
#: How addresses of the hub begin that lack https://.
_SITES = ("hf.co/", "huggingface.co/", "www.huggingface.co/")
_WORD = "[A-Za-z0-9][A-Za-z0-9_.-]*"
#: owner/repository, owner/repository:QUANTISATION or owner/repository/file.gguf.
_HUB_NAME = re.compile(
    rf"(?P<repository>(?P<owner>{_WORD})/{_WORD})"
    r"(:(?P<quantisation>[A-Za-z0-9_.-]+)|/(?P<file>[^\\:]+\.gguf))?",
    re.IGNORECASE,
)


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

    That is an existing path, the demo model, or a file of the Hugging Face hub, which is fetched
    once. What looks like a path is never looked for on the hub.
    """
    if (found := local(path)) is not None:
        return found
    if not os.fsdecode(path):
        raise FileNotFoundError("no file: the path is empty")
    name = _on_hub(path)
    if name is None and _meant_for_the_hub(str(path)):
        raise FileNotFoundError(
            f"no file {shortened(str(path))}; a model of the Hugging Face hub is named"
            " owner/repository, owner/repository:QUANTISATION or owner/repository/file.gguf"
        )
    if name is None and os.fsdecode(path).lower() in ("demo", "demo.gguf"):
        raise FileNotFoundError(f"no file {os.fsdecode(path)}; did you mean demo?")
    if name is None:
        return Path(os.path.expanduser(os.fsdecode(path)))  # open_gguf says what is there instead
    if name["file"]:
        return hub.fetch_file(name["repository"], name["file"])
    return hub.fetch_model(name["repository"], name["quantisation"])


def local(path: str | os.PathLike) -> Path | None:
    """Returns an existing path or the demo model; None where this machine has neither."""
    name = os.fsdecode(path)
    if name == "demo" and not os.path.isfile(name):
        return DEMO
    places = (name, os.path.expanduser(name))
    return next((Path(place) for place in places if os.path.exists(place)), None)


def _meant_for_the_hub(name: str) -> bool:
    """Returns whether a name that the hub does not have was probably meant as one of its names."""
    if "://" in name or name.lower().startswith(_SITES):
        return True
    repository = name.partition("@")[0].rstrip("/:")
    return repository != name and _on_hub(repository) is not None


def _on_hub(path: str | os.PathLike) -> re.Match | None:
    """Returns the parts of a name of the hub, or None for what is or looks like a path."""
    name = _HUB_NAME.fullmatch(path) if isinstance(path, str) else None
    if name is None or os.path.isdir(name["owner"]):
        return None
    if not name["file"] and name["repository"].lower().endswith(".gguf"):
        return None
    parts = name["file"].split("/") if name["file"] else []
    return None if {"", ".", ".."}.intersection(parts) else name
