"""Which file a model's name means, and where files of our own are kept. Imports no jax."""

import os
from pathlib import Path

#: The file behind the name "demo".
DEMO = Path(__file__).parent / "demo" / "demo.gguf"


def cache_folder() -> Path:
    """The user's folder for what can be made again: $XDG_CACHE_HOME/rocmforge-jax, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rocmforge-jax"


def resolve(path: str | os.PathLike) -> Path:
    """The file that `load` would open: an existing path, the demo model, or a file of the hub, downloaded once."""
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
            f"no file {repository}/{filename}; to fetch it from the Hugging Face hub: pip install 'rocmforge-jax[hub]'"
        ) from None
    return Path(hf_hub_download(repository, filename))
