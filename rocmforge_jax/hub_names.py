"""Names of models on the Hugging Face hub, and addresses of their pages. Imports no jax."""

import dataclasses
import os
import re
import urllib.parse
from typing import Any

_WORD = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_REVISION = r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*?"
#: owner/repository, with @revision, and then :QUANTISATION or /file.gguf.
_NAME = re.compile(
    rf"(?P<repository>(?P<owner>{_WORD})/{_WORD})(@(?P<revision>{_REVISION}))?"
    r"(:(?P<quantisation>[A-Za-z0-9_.-]+)|/(?P<file>[^\\:@]+\.gguf))?",
    re.IGNORECASE,
)
#: What an address of the hub begins with. A page of a file has its revision in the path.
_SITE = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/", re.IGNORECASE)
_PAGE = re.compile(
    rf"(?P<repository>{_WORD}/{_WORD})/(resolve|blob|raw)/(?P<revision>[^/]+)/(?P<file>.+\.gguf)",
    re.IGNORECASE,
)
_SCHEME = "hf://"


@dataclasses.dataclass(frozen=True)
class HubName:
    """A model on the hub.

    Attributes:
        repository: "owner/name".
        file: A file in it, or None for one that is chosen.
        quantisation: Of the file that is chosen, or None for a usual one.
        revision: A branch, a tag or a commit, or None for the main branch.
    """

    repository: str
    file: str | None = None
    quantisation: str | None = None
    revision: str | None = None


def parse(name: str | os.PathLike | bytes) -> HubName | None:
    """Returns what a name of the hub means, or None for what is or looks like a path."""
    if not isinstance(name, str):
        return None
    rest, is_address = _without_site(name)
    page = _PAGE.fullmatch(rest) if is_address else None
    found = page or _NAME.fullmatch(rest)
    if found is None:
        return None
    parts: dict[str, Any] = {"owner": None, "quantisation": None} | found.groupdict()
    if not is_address and os.path.isdir(parts["owner"] or ""):
        return None
    repository, file = parts["repository"], parts["file"]
    if not file and repository.lower().endswith(".gguf"):
        return None
    if file and {"", ".", ".."}.intersection(file.split("/")):
        return None
    return HubName(repository, file, parts["quantisation"], parts["revision"])


def meant_for_the_hub(name: str) -> bool:
    """Returns whether a name that the hub cannot have was probably meant as one of its names."""
    if "://" in name or _without_site(name)[1]:
        return True
    repository = name.partition("@")[0].rstrip("/:")
    return repository != name and parse(repository) is not None


def _without_site(name: str) -> tuple[str, bool]:
    """Returns a name without the address of the hub, and whether it had one."""
    if name.lower().startswith(_SCHEME):
        return name[len(_SCHEME) :].removeprefix("models/"), True
    if (site := _SITE.match(name)) is None:
        return name, False
    path = urllib.parse.urlsplit("https://hub/" + name[site.end() :]).path
    return urllib.parse.unquote(path).strip("/"), True
