"""Which file a model's name means, and where files of our own are kept. Imports no jax."""

import difflib
import hashlib
import itertools
import os
import platform
from pathlib import Path

from rocmforge_jax import hub, hub_names
from rocmforge_jax.gguf.errors import shortened
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


def resolve(path: str | os.PathLike, revision: str | None = None) -> Path:
    """Returns the file that `load` would open.

    That is an existing path, the demo model, or a file of the Hugging Face hub, which is fetched
    once. What looks like a path is never looked for on the hub.

    Args:
        path: The path or the name.
        revision: A branch, a tag or a commit of the hub's repository, default its main branch.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A revision is given for a file of this machine, or besides another one.
        TypeError: The revision is no text.
    """
    if revision is not None and not isinstance(revision, str):
        raise TypeError(f"revision is a text, got a {type(revision).__name__}")
    if (found := local(path)) is not None:
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is of a repository of the hub, and {shortened(str(path))}"
                " is a file of this machine"
            )
        return found
    if not os.fsdecode(path):
        raise FileNotFoundError("no file: the path is empty")
    name = hub_names.parse(path)
    if name is None and hub_names.meant_for_the_hub(str(path)):
        raise FileNotFoundError(
            f"no file {shortened(str(path))}; a model of the Hugging Face hub is named"
            " owner/repository, owner/repository:QUANTISATION or owner/repository/file.gguf, or by"
            " the address of its page on huggingface.co"
        )
    word = os.fsdecode(path).lower().removesuffix(".gguf")
    if name is None and difflib.get_close_matches(word, ["demo"], cutoff=0.8):
        raise FileNotFoundError(f"no file {os.fsdecode(path)}; did you mean demo?")
    if name is None:
        return Path(os.path.expanduser(os.fsdecode(path)))  # open_gguf says what is there instead
    if revision is not None and name.revision not in (None, revision):
        raise ValueError(f"{path} names revision {name.revision}, and revision is {revision}")
    revision = name.revision if revision is None else revision
    if name.file:
        return hub.fetch_file(name.repository, name.file, revision)
    return hub.fetch_model(name.repository, name.quantisation, revision)


def local(path: str | os.PathLike) -> Path | None:
    """Returns an existing path or the demo model; None where this machine has neither."""
    name = os.fsdecode(path)
    if name == "demo" and not os.path.isfile(name):
        return DEMO
    places = (name, os.path.expanduser(name))
    return next((Path(place) for place in places if os.path.exists(place)), None)
