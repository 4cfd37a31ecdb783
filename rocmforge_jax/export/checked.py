"""Finds the keys of a file from which a configuration is read back, before the file is written."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.export.keys import keys_of
from rocmforge_jax.formats import Format
from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.gguf.errors import listed, shortened
from rocmforge_jax.models import Decoder, DecoderConfig, read_config
from rocmforge_jax.models.claims import claim
from rocmforge_jax.nn import only_shapes

#: Of a float32 number against the Python float that it was rounded from.
_SAME = 1e-6


def checked_keys(
    config: DecoderConfig,
    keys: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Any]],
    path: Path,
    context_length: int | None,
) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """Returns keys from which the configuration is read, and the tensors that it needs besides.

    These are the keys as they are, where they fit; else those of the configuration in place of
    those of the architecture.

    Args:
        config: Of the decoder.
        keys: Of the file that the decoder came from, as `write_gguf` takes them.
        tensors: As `write_gguf` takes them.
        path: Of the new file, for messages.
        context_length: Tokens that the model was opened for.

    Raises:
        ValueError: No keys say what the configuration holds, with what differs.
    """
    kept = _with_blocks(keys, config)
    if f"{config.architecture}.block_count" in kept:
        problems, _ = _problems(config, _Announced(path, kept, tensors), context_length)
        if not problems:
            return kept, {}
    prefix, found = f"{config.architecture}.", []
    others = {key: value for key, value in kept.items() if not key.startswith(prefix)}
    for of_config, more in keys_of(config):
        made = {"tokenizer.ggml.model": "none"} | of_config | others
        file = _Announced(path, made, more | dict(tensors))
        problems, unknown = _problems(config, file, None)
        if not problems:
            return {key: value for key, value in made.items() if key not in unknown}, more
        found = found or problems
    raise ValueError(
        f"the keys of a {config.architecture} file cannot express this configuration:"
        f" {listed(found)}"
    )


def _with_blocks(keys: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """Returns keys for the layers that there are: blocks may not have been loaded.

    Arrays of a value for each block are cut.
    """
    prefix = f"{config.architecture}."
    count, kept = keys.get(f"{prefix}block_count"), len(config.layers) + len(config.nextn)
    if count is None or count == kept:
        return dict(keys)
    changed: dict[str, Any] = {f"{prefix}block_count": np.uint32(kept)}
    if not config.nextn and f"{prefix}nextn_predict_layers" in keys:
        changed[f"{prefix}nextn_predict_layers"] = np.uint32(0)
    for key, value in keys.items():
        if key.startswith(prefix) and isinstance(value, np.ndarray) and len(value) == count:
            changed[key] = value[:kept]
    return dict(keys) | changed


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor that is not written yet, with the attributes of a TensorInfo."""

    name: str
    format: Format
    array: Any
    offset = 0

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, last = self.array.shape
        nbytes = last * np.dtype(self.array.dtype).itemsize
        return (*lead, self.format.row_blocks(nbytes) * self.format.block)

    @property
    def nbytes(self) -> int:
        return math.prod(self.array.shape) * np.dtype(self.array.dtype).itemsize

    @property
    def data(self) -> np.ndarray:
        return np.ascontiguousarray(self.array).view(np.uint8)


class _Announced:
    """A file that is not written yet, with the attributes of a GGUFFile."""

    def __init__(self, path, keys, tensors):
        self.path = path
        self.metadata: Any = {key: _as_read(value) for key, value in keys.items()}
        self.architecture = self.metadata["general.architecture"]
        self.tensors: Any = {
            name: _Tensor(name, formats.get(format), array)
            for name, (format, array) in tensors.items()
        }


def _as_read(value):
    """Returns a value as `Metadata` gives it once it is written."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, list | tuple) and not isinstance(value[0], str | bytes):
        kinds = {type(entry) for entry in value}
        return np.asarray(value, bool if kinds == {bool} else None)
    return value


def _problems(
    config: DecoderConfig, file: Any, context_length: int | None
) -> tuple[list[str], set[str]]:
    """Compares a configuration with the one that a file would be read with.

    Returns:
        What differs, and the keys that the family does not know.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read, unused = read_config(file, context_length, nextn=bool(config.nextn))
        except GGUFError as error:
            return [shortened(str(error).removeprefix(f"{file.path}: "), 300)], set()
        found = list(differences(config, read))
        if not found:
            with only_shapes():
                decoder = Decoder(read, rngs=None)
            found = claim(decoder, file)[1]
    return found, {key for key, why in unused.items() if why == "unknown"}


def differences(wanted: Any, read: Any, place: str = "") -> Iterator[str]:
    """Yields each field in which two configurations differ, with both values.

    place: What the two are called. Numbers that are equal in float32 count as equal.
    """
    if dataclasses.is_dataclass(wanted) and type(wanted) is type(read):
        for field in dataclasses.fields(wanted):
            name = f"{place}.{field.name}" if place else field.name
            yield from differences(getattr(wanted, field.name), getattr(read, field.name), name)
    elif isinstance(wanted, tuple) and isinstance(read, tuple) and len(wanted) == len(read):
        for i, (one, other) in enumerate(zip(wanted, read)):
            yield from differences(one, other, f"{place}[{i}]")
    elif isinstance(wanted, float) and isinstance(read, float | int):
        if not math.isclose(wanted, read, rel_tol=_SAME):
            yield f"{place} is {wanted:g}, a file would be read as {read:g}"
    elif wanted != read:
        shown = (shortened(str(one), 80) for one in (wanted, read))
        yield "{} is {}, a file would be read as {}".format(place, *shown)
