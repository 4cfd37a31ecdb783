"""Stores compiled XLA programs in a folder, so that later processes do not compile them again."""

import glob
import os
import re
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from rocmforge_jax import locate
from rocmforge_jax.settings import jax_variables

#: Matches JAX's warnings about its compilation cache.
_WARNING = re.compile(
    r"Error (?P<verb>reading|writing) persistent compilation cache entry for '(?P<program>.+?)': "
    r"(?P<reason>.*)",
    re.DOTALL,
)
#: Prefixes of the reasons for an entry that cannot be decompressed: zlib, zstandard, or a folder.
_DAMAGES = ("error: ", "ZstdError: ", "IsADirectoryError: ")


def enable_compilation_cache(folder: str | os.PathLike | None = None) -> Path | None:
    """Enables JAX's compilation cache. This changes JAX's configuration for the whole process.

    Args:
        folder: Where to store programs. Default: JAX_COMPILATION_CACHE_DIR, or else a folder for
            each kind of processor in the user's cache, ~/.cache/rocmforge-jax/xla.

    Returns:
        The folder. None if the default one cannot be created; each process then compiles.

    Raises:
        ValueError: `folder` is empty.
        OSError: `folder` cannot be created.
    """
    if folder is not None and not os.fspath(folder):
        raise ValueError("the folder of the compilation cache has an empty name")
    # The key of a program includes its kernels' code, which contains the traced source lines. These
    # depend on what was traced before, so leave them out.
    jax.config.update("jax_traceback_in_locations_limit", 0)
    named = jax_variables().get("JAX_COMPILATION_CACHE_DIR")
    if folder is None and named is not None:
        return Path(named)
    chosen = Path(locate.compiled_folder() if folder is None else folder)
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:
            return None
        reason = "it is a file" if chosen.is_file() else error.strerror or error
        raise OSError(f"compiled programs cannot be kept in {chosen}: {reason}") from error
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # Store small programs too: a dozen of them together compile as long as the large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # JAX may have initialised it without the folder
    return chosen


def is_enabled() -> bool:
    """Returns whether JAX's compilation cache is enabled."""
    return bool(_setting("jax_compilation_cache_dir") and _setting("jax_enable_compilation_cache"))


def handle_warning(warning: str) -> str:
    """Deletes a cache entry that JAX warns it cannot read, and shortens JAX's warnings.

    JAX itself would keep the entry and warn at every start. Its warning contains the program's name
    but not the file, so all entries with that name are deleted. In a folder that the user has
    specified, only entries that cannot be decompressed are deleted.

    Returns:
        The warning, or the action taken, with the same text for every entry.
    """
    folder = Path(_setting("jax_compilation_cache_dir") or os.devnull)
    found = _WARNING.match(warning)
    if not found:
        return warning
    if found["verb"] == "writing" or not folder.is_dir():
        return f"{folder} cannot be written, so every start compiles anew: {found['reason']}"
    if folder != locate.compiled_folder() and not found["reason"].startswith(_DAMAGES):
        return warning
    for path in folder.glob(f"{glob.escape(found['program'])}-*"):
        try:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            return f"a damaged entry of the cache cannot be removed: {path}: {error.strerror}"
    return f"damaged entries of the cache {folder} are replaced"


def _setting(name: str):
    return getattr(jax.config, name)
