"""Writes a decoder as a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.export.checked import checked_keys
from rocmforge_jax.export.names import named_as_in
from rocmforge_jax.export.room import make_folder
from rocmforge_jax.export.weights import weights
from rocmforge_jax.gguf import Metadata, write_gguf
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models import Source
from rocmforge_jax.models.requantize import Types, wanted_formats
from rocmforge_jax.text.metadata import warn

#: The value of `general.file_type` -> the type that most of the file's weights have. Where several
#: values have a type, the first is written: llama.cpp's for the type alone, or its small mixture.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q3_K",
    13: "Q3_K",
    14: "Q4_K",
    15: "Q4_K",
    16: "Q5_K",
    17: "Q5_K",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    22: "IQ3_S",
    27: "IQ3_S",
    28: "IQ2_S",
    29: "IQ2_S",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
#: Beginnings of keys that describe how a model is cut into files.
_OF_SPLITS = "split."


def write(
    decoder,
    path: Path,
    *,
    source: Source | None,
    types: Types | None,
    metadata: Mapping[str, Any],
    context_length: int | None = None,
    progress=None,
) -> None:
    """Writes a GGUF file, which replaces one of the same name once it is complete.

    Args:
        decoder: The model.
        path: Of the file.
        source: Of the file that the model was loaded from.
        types: As for `Decoder.quantize`; None keeps all types.
        metadata: Keys in place of those of the source; None leaves one out.
        context_length: Tokens that the model was opened for.
        progress: See `write_gguf`.
    """
    wanted = {} if types is None else wanted_formats(decoder, types)
    tensors = named_as_in(source, weights(decoder, wanted), decoder.config.architecture)
    keys = {} if source is None else _typed(source.metadata)
    given = _typed(metadata) if isinstance(metadata, Metadata) else dict(metadata)
    keys |= {"general.architecture": decoder.config.architecture} | given
    keys = {key: value for key, value in keys.items() if value is not None}
    written = {name: (one.format.name, one) for name, one in tensors.items()}
    if source is not None:
        written = dict(source.tensors) | written
    keys, more = checked_keys(decoder.config, keys, written, path, context_length)
    written = more | written
    _warn_of_left_out(source, written)
    keys = _with_types(keys, tensors)
    make_folder(path.parent, sum(one.nbytes for one in tensors.values()))
    write_gguf(path, keys, written, progress=progress)


def _typed(metadata: Metadata) -> dict[str, Any]:
    """Returns the keys of a file, with the types that their values have there."""
    kept, empty = {}, []
    for key in metadata:
        value = metadata.typed(key)
        if key.startswith(_OF_SPLITS):
            continue
        if hasattr(value, "__len__") and not isinstance(value, str | bytes) and not len(value):
            empty.append(key)
            continue
        kept[key] = value
    if empty:
        warn(f"{len(empty)} keys with empty arrays are not written: {listed(empty, ', ')}")
    return kept


def _warn_of_left_out(source: Source | None, written) -> None:
    """Warns of tensors of the source that are not written because they were not loaded."""
    if source is None:
        return
    left = [
        name for name in source.shapes if name not in written and not name.endswith(".input_scale")
    ]
    if left:
        warn(
            f"{len(left)} tensors of {source.path.name} were not loaded and are not saved:"
            f" {listed(left, ', ', most=5)}"
        )


def _with_types(keys: dict[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Corrects the keys that say which types the file has."""
    sizes: dict[str, int] = {}
    for one in tensors.values():
        if len(one.file_shape) > 1:
            sizes[one.format.name] = sizes.get(one.format.name, 0) + one.nbytes
    most = max(sizes, key=lambda name: sizes[name], default="F32")
    keys = dict(keys)
    if _FILE_TYPES.get(int(keys.get("general.file_type", -1))) != most:
        number = next((number for number, name in _FILE_TYPES.items() if name == most), None)
        keys.pop("general.file_type", None)
        if number is not None:
            keys["general.file_type"] = np.uint32(number)
    if any(formats.get(name).is_quantized for name in sizes):
        keys["general.quantization_version"] = np.uint32(2)
    return keys
