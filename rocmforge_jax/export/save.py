"""`save`: a model as a file that other programs read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rocmforge_jax.arguments import named_values
from rocmforge_jax.export import gguf_file, hugging_face
from rocmforge_jax.export.weights import check_variables
from rocmforge_jax.gguf.errors import quoted
from rocmforge_jax.gguf.metadata import Metadata
from rocmforge_jax.language_model import LanguageModel
from rocmforge_jax.models import Decoder
from rocmforge_jax.models.requantize import Types
from rocmforge_jax.progress import progress_bar, updates

#: The values of `format` -> the endings of paths that stand for them.
FORMATS = {"gguf": ".gguf", "safetensors": ".safetensors"}


def save(
    model: LanguageModel | Decoder,
    path: str | os.PathLike,
    *,
    types: Types | None = None,
    metadata: Mapping[str, Any] | None = None,
    format: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Writes a model to a file or a folder.

    A GGUF file has the packed weights byte for byte, dense ones as F32, F16 or BF16, and the keys,
    tokenizer and chat template of the file that the model came from. A model that came from no
    file, or whose configuration was changed, gets the keys of its configuration. A file of the same
    name is replaced once the new one is complete.

    A folder has dense weights in safetensors, configuration and tokenizer, as transformers loads
    them, for Llama, Qwen 2 and 3, and Gemma 1 to 3. A path that ends in .safetensors gets the
    weights alone.

    Args:
        model: What `load` returns, or its `model`. A decoder alone has no tokenizer.
        path: Of the file or of a new folder. Folders around it are made.
        types: A type for all matrices ("Q4_K"), or a mapping of patterns of tensor names to types,
            of which the first that matches counts. Default: each stays as it is. See
            `Decoder.quantize`. Of safetensors: "F32", which is the default, "F16" or "BF16".
        metadata: Keys of a GGUF file in place of those that it would have; None leaves a key out.
        format: "gguf" or "safetensors", default what the path ends in; a path without an ending is
            a folder for "safetensors".
        progress: Whether to show a bar on stderr, default: if that is a terminal.

    Returns:
        The path.

    Raises:
        TypeError: `model` is no model, or `path` no path.
        ValueError: The ending of the path says no format, or the model cannot be said in the
            format, with what cannot.
        FileExistsError: The folder is there and not empty.
        OSError: There is not enough room.
    """
    decoder = model.model if isinstance(model, LanguageModel) else model
    if not isinstance(decoder, Decoder):
        raise TypeError(f"save() takes a LanguageModel or a Decoder, got {type(model).__name__}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save() takes a text or an os.PathLike as path, got {path!r:.80}")
    check_variables(decoder)
    if not os.fspath(path):
        raise ValueError("the path is empty: name a file or a folder")
    path = Path(path).expanduser()
    format = check_format(path, format)
    if not isinstance(metadata, Metadata):
        metadata = named_values("metadata", metadata)
    lm = model if isinstance(model, LanguageModel) else None
    with progress_bar(progress=progress, unit="B", unit_scale=True, desc=path.name) as bar:
        if format == "gguf":
            _save_gguf(decoder, path, lm, types, metadata, updates(bar))
        elif metadata:
            raise ValueError(f"metadata are keys of GGUF files, {path.name} is none")
        else:
            hugging_face.write(decoder, path, lm=lm, types=types, progress=updates(bar))
    return path


def _save_gguf(decoder, path: Path, lm: LanguageModel | None, types, metadata, progress) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if lm is not None and lm.source is None and "tokenizer.ggml.model" not in metadata:
        raise ValueError(
            "a LanguageModel that was not made by rf.load keeps no metadata, so the keys of its"
            " tokenizer are unknown: give metadata=loaded.metadata of the loaded model, or save its"
            " `model` alone"
        )
    gguf_file.write(
        decoder,
        path,
        source=None if lm is None else lm.source,
        types=types,
        metadata=metadata,
        context_length=None if lm is None else lm.opened_for,
        progress=progress,
    )


def check_format(path: Path, format: str | None) -> str:
    """Returns the format of a path: the one that is given, or what the path ends in.

    A folder is the one without an ending.
    """
    known = ", ".join(f"{name} ({ending})" for name, ending in FORMATS.items())
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format is one of {known}, got {format!r}")
        return format
    if not path.suffix or path.is_dir():
        return "safetensors"
    found = [name for name, ending in FORMATS.items() if path.suffix.lower() == ending]
    if not found:
        raise ValueError(
            f"the ending of {quoted(path.name)} names no format: use one of {known}, or a name"
            " without an ending for a folder of safetensors"
        )
    return found[0]
