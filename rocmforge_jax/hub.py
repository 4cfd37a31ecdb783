"""Fetches GGUF files from the Hugging Face hub, once: they stay in its cache. Imports no jax."""

import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rocmforge_jax.gguf.errors import listed, shortened

#: Quantisations that are taken where none is named, the first that a repository has, as in
#: llama.cpp. A repository with none of them gives its first model.
PREFERRED = ("Q4_K_M", "Q8_0")
#: Seconds after which a hub that does not answer counts as out of reach.
CONNECT_LIMIT = 3.0
#: Parts of the names of files that go with a model and are none.
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.I | re.S)
_UNREACHABLE = "the hub cannot be reached: check the network, or give the path of a file"
#: Name of an exception of huggingface_hub, or of a base class -> what it means, in a line.
_MEANINGS = {
    "GatedRepoError": "its owner has to admit you: ask on its page, then set HF_TOKEN",
    "RepositoryNotFoundError": "there is no such repository, or it is private (set HF_TOKEN)",
    "LocalEntryNotFoundError": "the hub cannot be reached, and the file is not in its cache",
    "RevisionNotFoundError": "the repository has no such revision",
    "EntryNotFoundError": "the repository has no such file",
    "ConnectionError": _UNREACHABLE,
    "ConnectError": _UNREACHABLE,
    "TransportError": _UNREACHABLE,
}


def fetch_file(repository: str, filename: str, revision: str | None = None) -> Path:
    """Returns the local copy of a file of a repository, and fetches all parts of a split model.

    revision: A branch, a tag or a commit, default the main branch.

    Raises FileNotFoundError, in one line, where the file cannot be had.
    """
    options: dict[str, Any] = {} if _reachable() else {"local_files_only": True}
    options |= _of(revision)
    try:
        parts = _parts(filename)
        return [Path(_call("hf_hub_download", repository, part, **options)) for part in parts][0]
    except FileNotFoundError as error:
        if _MEANINGS["EntryNotFoundError"] not in str(error):
            raise
        there = [file for file in _files(repository, revision) if file.lower().endswith(".gguf")]
        raise FileNotFoundError(
            f"{error}; it has {listed(there, ', ') or 'no GGUF file'}"
        ) from None


def fetch_model(
    repository: str, quantisation: str | None = None, revision: str | None = None
) -> Path:
    """Returns the local copy of a repository's model, chosen as llama.cpp's option -hf does.

    Args:
        repository: "owner/name".
        quantisation: What the file's name has before a "-" or ".", such as "Q5_K_M", in any case.
        revision: As for `fetch_file`.
    """
    files = _files(repository, revision)
    if (chosen := choose(files, quantisation)) is None:
        there = [file for file in files if file.lower().endswith(".gguf")]
        wanted = f"GGUF file of {quantisation}" if quantisation else "GGUF file with a model"
        raise FileNotFoundError(
            f"{repository} has no {wanted}; it has {listed(there, ', ') or 'no GGUF file at all'}"
        )
    return fetch_file(repository, chosen, revision)


def choose(files: Sequence[str], quantisation: str | None = None) -> str | None:
    """Returns the name of the model of a quantisation among a repository's files, or None.

    Without a quantisation it is one of `PREFERRED`, or else the first model. Of a split model it is
    the first part.
    """
    models = [file for file in files if _is_model(file)]
    for wanted in [quantisation] if quantisation else PREFERRED:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        if found := next(filter(pattern.search, models), None):
            return found
    return None if quantisation else next(iter(models), None)


def _is_model(file: str) -> bool:
    name = file.rpartition("/")[2].lower()
    split = _SPLIT.fullmatch(name)
    later_part = split is not None and int(split["number"]) != 1
    return name.endswith(".gguf") and not later_part and not any(no in name for no in _NO_MODELS)


def _parts(filename: str) -> list[str]:
    """Returns the file, then the other parts of the split model that it belongs to."""
    split = _SPLIT.fullmatch(filename)
    if split is None:
        return [filename]
    numbers = range(1, int(split["count"]) + 1)
    parts = [f"{split['stem']}-{number:05}-of-{split['count']}.gguf" for number in numbers]
    return [filename, *(part for part in parts if part != filename)]


def _of(revision: str | None) -> dict[str, str]:
    """Returns the argument of the hub's functions for a revision."""
    return {} if revision is None else {"revision": revision}


def _files(repository: str, revision: str | None = None) -> list[str]:
    """Lists a repository's files; without the hub, those in the cache."""
    try:
        if not _reachable():
            raise FileNotFoundError(_failure(repository, _UNREACHABLE))
        return sorted(_call("list_repo_files", repository, **_of(revision)))
    except FileNotFoundError:
        if cached := _cached_files(repository, revision):
            return cached
        raise


def _cached_files(repository: str, wanted: str | None) -> list[str]:
    try:
        cache = _hub().scan_cache_dir()
    except Exception:  # no cache, or a damaged one: the hub's own error says more
        return []
    return sorted(
        str(file.file_path.relative_to(revision.snapshot_path).as_posix())
        for repo in cache.repos
        if (repo.repo_id, repo.repo_type) == (repository, "model")
        for revision in repo.revisions
        if wanted is None or wanted in (revision.commit_hash, *revision.refs)
        for file in revision.files
    )


def _call(name: str, repository: str, *filename: str, **options) -> Any:
    """Calls a function of huggingface_hub, whose errors become one line."""
    wanted = "/".join((repository, *filename))
    hub = _hub(wanted)
    try:
        return getattr(hub, name)(repository, *filename, **options)
    except Exception as error:  # the hub's, those of the network below it, and of the disk
        raise FileNotFoundError(_failure(wanted, _meaning(error))) from None


def _failure(wanted: str, reason: str) -> str:
    return f"cannot fetch {wanted} from the Hugging Face hub: {reason}"


def _reachable() -> bool:
    """Returns whether a connection to the hub opens; True where only the hub's library can tell.

    The library retries for 24 s, and prints a line each time.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if not address.hostname or constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), CONNECT_LIMIT).close()
    except OSError:
        return False
    return True


def _hub(wanted: str = "") -> Any:
    """Returns the module huggingface_hub."""
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"no file {wanted}; to fetch it from the Hugging Face hub: pip install"
            " 'rocmforge-jax[hub]'"
        ) from None
    return huggingface_hub


def _meaning(error: Exception) -> str:
    bases = (base.__name__ for base in type(error).__mro__)
    if known := next(filter(None, map(_MEANINGS.get, bases)), None):
        return known
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {shortened(text)}"
