"""Typed look-ups in the metadata of a GGUF file.

The type of each value is checked, and each error names the key.
"""

import sys
import warnings

import numpy as np

from rocmforge_jax.gguf import GGUFError

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Warns about a file, with the location of the line that called this package."""
    depth, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth)


def string(metadata, key: str, default: str | None = None) -> str:
    """Returns a string. Raises GGUFError if the key is missing and there is no default."""
    return _scalar(metadata, key, str, "a string", default)


def boolean(metadata, key: str, default: bool) -> bool:
    """Returns a boolean."""
    return bool(_scalar(metadata, key, (bool, np.bool_), "a boolean", default))


def token_id(metadata, key: str, vocab_size: int) -> int | None:
    """Returns a token id, or None if the key is missing or the id is not below `vocab_size`."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise GGUFError(f"{key} is {value!r} ({type(value).__name__}): expected an integer")
    return int(value) if 0 <= value < vocab_size else None


def token_ids(metadata, key: str, vocab_size: int) -> frozenset[int]:
    """Returns a set of token ids; those outside the vocabulary are dropped with a warning."""
    values = metadata.get(key)
    ids = np.asarray([] if values is None else values)
    if ids.ndim != 1 or len(ids) and ids.dtype.kind not in "iu":
        raise GGUFError(f"{key} is {_kind(values)}: expected a list of integers")
    known = {id for id in ids.tolist() if 0 <= id < vocab_size}
    if unknown := set(ids.tolist()) - known:
        warn(
            f"{key}: {len(unknown)} ids are ignored, such as {min(unknown)}: the vocabulary has"
            f" {vocab_size} tokens"
        )
    return frozenset(known)


def strings(metadata, key: str) -> list[str | bytes]:
    """Returns a list of strings, with bytes for those that are not UTF-8.

    Raises:
        GGUFError: The key is missing or has another type.
    """
    values = _required(metadata, key)
    if isinstance(values, (str, bytes, np.ndarray)) or not hasattr(values, "__len__"):
        raise GGUFError(f"{key} is {_kind(values)}: expected a list of strings")
    values = list(values)
    if not set(map(type, values)) <= {str, bytes}:
        index = next(index for index, value in enumerate(values) if type(value) not in (str, bytes))
        raise GGUFError(f"{key}[{index}] is {_kind(values[index])}: expected a string")
    return values


def numbers(metadata, key: str, length: int, *, integral: bool) -> np.ndarray | None:
    """Returns the first `length` numbers of a list, in the file's dtype, or None without the key.

    The rest of a longer list is dropped with a warning.

    Raises:
        GGUFError: The list is too short or has another type.
    """
    values = metadata.get(key)
    if values is None:
        return None
    if isinstance(values, (list, tuple)) and all(
        isinstance(value, (int, float, np.number)) for value in values
    ):
        values = np.asarray(values)
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 1
        or values.dtype.kind not in ("iu" if integral else "iuf")
    ):
        raise GGUFError(
            f"{key} is {_kind(values)}: expected a list of {length}"
            f" {'integers' if integral else 'numbers'}"
        )
    if len(values) < length:
        raise GGUFError(f"{key} has {len(values)} entries for {length} tokens")
    if len(values) > length:
        warn(f"{key} has {len(values)} entries for {length} tokens: the rest is left out")
    return values[:length]


def octets(metadata, key: str) -> bytes | None:
    """Returns a list of 8-bit numbers as bytes, or None if the key is missing."""
    values = metadata.get(key)
    if values is None:
        return None
    if not isinstance(values, np.ndarray) or values.dtype not in (np.uint8, np.int8):
        raise GGUFError(f"{key} is {_kind(values)}: expected a list of 8-bit integers")
    return values.tobytes()


def _required(metadata, key):
    value = metadata.get(key)
    if value is None:
        raise GGUFError(f"the file has no {key}")
    return value


def _scalar(metadata, key, types, kind, default):
    value = _required(metadata, key) if default is None else metadata.get(key, default)
    if not isinstance(value, types):
        raise GGUFError(f"{key} is {_kind(value)}: expected {kind}")
    return value


def _kind(value) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {list(value.shape)}"
    if isinstance(value, (str, bytes)):
        return "a string" if isinstance(value, str) else "bytes that are not UTF-8"
    return f"a list of {len(value)}" if hasattr(value, "__len__") else repr(value)
