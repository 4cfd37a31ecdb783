"""Writes a folder that transformers loads, or a safetensors file of the weights alone."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rocmforge_jax.export.checked import differences
from rocmforge_jax.export.hugging_face.families import FAMILIES, Family, settings
from rocmforge_jax.export.hugging_face.tensors import nbytes, values, write_file, write_files
from rocmforge_jax.export.hugging_face.tokenizer_files import tokenizer_files
from rocmforge_jax.export.room import make_folder
from rocmforge_jax.export.weights import weights
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.language_model import LanguageModel
from rocmforge_jax.models import DecoderConfig

#: The types that safetensors files get here -> what config.json calls them, and NumPy.
_TYPES = {
    "F32": ("float32", np.dtype(np.float32)),
    "F16": ("float16", np.dtype(np.float16)),
    "BF16": ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
}


def write(
    decoder,
    path: Path,
    *,
    lm: LanguageModel | None,
    types: Any,
    progress: Callable[[int, int], None],
) -> None:
    """Writes a decoder with the names of transformers, its weights dense.

    Args:
        decoder: The model.
        path: Of a file that ends in .safetensors, for the weights alone; or of a new folder.
        lm: The model with its tokenizer, for the files of a tokenizer.
        types: "F32", which is the default, "F16" or "BF16".
        progress: Called with (bytes written, bytes in all).

    Raises:
        ValueError: The family is not one of `FAMILIES`, its configuration has what transformers'
            class cannot say, or another type.
        FileExistsError: The folder is there and not empty.
    """
    family = _family(decoder.config)
    dtype_name, dtype = _dtype(types)
    made = settings(family, decoder.config) | {"dtype": dtype_name, "torch_dtype": dtype_name}
    found = weights(decoder, {})
    names = _names(family, found)
    sizes = {name: nbytes(found[tensor], dtype) for name, tensor in names.items()}
    done = 0

    def make(tensor: str) -> np.ndarray:
        return values(found[tensor], tensor, family, decoder.config, dtype)

    def show(written: int) -> None:
        nonlocal done
        done += written
        progress(done, sum(sizes.values()))

    if path.suffix == ".safetensors":
        make_folder(path.parent, sum(sizes.values()))
        write_file(path, names, make, show)
        return
    files = {"config.json": made}
    if lm is not None:
        files = tokenizer_files(lm, made) | files
    make_folder(path.parent, sum(sizes.values()))
    _new_folder(path)
    write_files(path, names, sizes, make, show)
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (path / name).write_text(text + "\n", encoding="utf-8")


def _family(config: DecoderConfig) -> Family:
    """Returns the family of a configuration, which it must mean the same in."""
    if config.architecture not in FAMILIES:
        raise ValueError(
            f"{config.architecture} cannot be saved for transformers; there are"
            f" {', '.join(FAMILIES)}. Save it as .gguf"
        )
    family = FAMILIES[config.architecture]
    found = list(differences(config, family.meant(config)))
    if found:
        raise ValueError(
            f"{family.class_name} of transformers cannot express this configuration:"
            f" {listed(found)}"
        )
    return family


def _dtype(types: Any) -> tuple[str, np.dtype]:
    if types is None:
        return _TYPES["F32"]
    if not isinstance(types, str) or types.upper() not in _TYPES:
        got = "types of single tensors" if isinstance(types, Mapping) else f"{types!s:.100}"
        raise ValueError(
            f"weights for transformers are dense, of one type, {', '.join(_TYPES)}: got {got}"
        )
    return _TYPES[types.upper()]


def _names(family: Family, found) -> dict[str, str]:
    """Returns the tensor of each name of transformers."""
    names = {family.name(tensor): tensor for tensor in found}
    unknown = [tensor for tensor in found if family.name(tensor) is None]
    if unknown:
        raise ValueError(f"{family.class_name} of transformers has no {listed(unknown, ', ')}")
    return {name: tensor for name, tensor in names.items() if name is not None}


def _new_folder(path: Path) -> None:
    if path.is_file():
        raise FileExistsError(f"{path} is a file: give the name of a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(
            f"{path} holds {len(list(path.iterdir()))} files already: give the name of a new folder"
        )
    path.mkdir(exist_ok=True)
