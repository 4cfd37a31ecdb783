"""`save`: a model as a file that other programs read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rocmforge_jax.arguments import flag
from rocmforge_jax.export import gguf_file
from rocmforge_jax.gguf.errors import quoted
from rocmforge_jax.language_model import LanguageModel
from rocmforge_jax.models import Decoder
from rocmforge_jax.models.requantize import Types

#: The values of `format` -> the endings of paths that stand for them.
FORMATS = {"gguf": ".gguf"}


def save(
    model: LanguageModel | Decoder,
    path: str | os.PathLike,
    *,
    types: Types | None = None,
    metadata: Mapping[str, Any] | None = None,
    format: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Writes a model to a file.

    A GGUF file has the packed weights byte for byte, dense ones as F32, F16 or BF16, and the keys,
    tokenizer and chat template of the file that the model came from. A model that came from no
    file, or whose configuration was changed, gets the keys of its configuration. A file of the same
    name is replaced once the new one is complete.

    Args:
        model: What `load` returns, or its `model`. A decoder alone has no tokenizer.
        path: Of the file.
        types: A type for all matrices ("Q4_K"), or a mapping of patterns of tensor names to types,
            of which the first that matches counts. Default: each stays as it is. See
            `Decoder.quantize`.
        metadata: Keys in place of those of the file; None leaves a key out.
        format: One of `FORMATS`, default what the path ends in.
        progress: Whether to show a bar on stderr, default: if that is a terminal.

    Returns:
        The path.

    Raises:
        TypeError: `model` is no model, or `path` no path.
        ValueError: The ending of the path says no format, or the model cannot be said in the
            format, with what cannot.
        OSError: There is no such folder, or not enough room.
    """
    decoder = model.model if isinstance(model, LanguageModel) else model
    if not isinstance(decoder, Decoder):
        raise TypeError(f"save() takes a LanguageModel or a Decoder, got {type(model).__name__}")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"save() takes a text or an os.PathLike as path, got {path!r:.80}")
    path = Path(path).expanduser()
    check_format(path, format)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    lm = model if isinstance(model, LanguageModel) else None
    metadata = dict(metadata or {})
    if lm is not None and lm.source is None and "tokenizer.ggml.model" not in metadata:
        raise ValueError(
            "the keys of the tokenizer are not known, because the model came from no file: give"
            " metadata=lm.metadata of the model with this tokenizer, or save its `model` alone"
        )
    shown = None if progress is None else not flag("progress", progress)
    with tqdm(unit="B", unit_scale=True, desc=path.name, disable=shown) as bar:

        def show(done, total):
            bar.total = total
            bar.update(done - bar.n)

        gguf_file.write(
            decoder,
            path,
            source=None if lm is None else lm.source,
            types=types,
            metadata=metadata,
            context_length=None if lm is None else lm.opened_for,
            progress=show,
        )
    return path


def check_format(path: Path, format: str | None) -> str:
    """Returns the format of a path."""
    known = ", ".join(f"{name} ({ending})" for name, ending in FORMATS.items())
    if format is None:
        found = [name for name, ending in FORMATS.items() if path.suffix.lower() == ending]
        if not found:
            raise ValueError(f"{quoted(path.name)} ends in no format: there are {known}")
        return found[0]
    if format not in FORMATS:
        raise ValueError(f"format is one of {known}, got {format!r}")
    return format
