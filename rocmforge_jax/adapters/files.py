"""Saves and loads adapters, in PEFT's form or llama.cpp's."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from rocmforge_jax.adapters import llama_cpp, peft
from rocmforge_jax.adapters.tensors import pairs_of, with_pairs
from rocmforge_jax.adapters.wrap import adaptable
from rocmforge_jax.models import Decoder

_FILES = (".safetensors", ".bin", ".pt", ".pth")


def save_lora(model: Decoder, path: str | os.PathLike, *, base_model: str | None = None) -> None:
    """Writes the adapters of a model, in float32.

    A path that ends in ".gguf" is written for llama.cpp. Any other names a folder, which is made
    and gets the two files of PEFT's form. Rows are in the order that each of them expects.

    Args:
        model: A decoder with adapters.
        path: A GGUF file or a folder, which is made with the folders around it. Files of the same
            names are replaced once the new ones are complete.
        base_model: What PEFT is to load the base from, such as "HuggingFaceTB/SmolLM2-135M".

    Raises:
        ValueError: There is no adapter, PEFT's form has no name for a layer, or the file is there
            and holds no adapter.
        ImportError: PEFT's form needs the extra `export`.
    """
    pairs = pairs_of(model)
    if not os.fspath(path):
        raise ValueError("the path is empty: name a folder or a .gguf")
    path = Path(path)
    if path.suffix == ".gguf":
        llama_cpp.check_replaces(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        llama_cpp.write(path, pairs, model.config.architecture)
        return
    if path.suffix in _FILES or path.is_file():
        raise ValueError(f"PEFT's form is a folder, and {path} is a file: name a folder or a .gguf")
    peft.write(path, pairs, model, base_model)


def load_lora(model: Decoder, path: str | os.PathLike, *, dtype: Any = jnp.float32) -> Decoder:
    """Returns a new model with the adapters of a file; it shares every array with `model`.

    Args:
        model: A decoder without adapters.
        path: A folder in PEFT's form, or a GGUF file of llama.cpp's.
        dtype: The dtype of the adapters in the model.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: The file holds no adapter, or one that does not fit the model.
        ImportError: PEFT's form needs the extra `export`.
    """
    adaptable(model)  # checks the argument
    path = Path(path)
    if path.name in (peft.CONFIG, peft.WEIGHTS):
        path = path.parent
    if path.is_dir():
        pairs = peft.read(path, model)
    else:
        pairs = llama_cpp.read(path, model.config.architecture)
    return with_pairs(model, pairs, str(path), dtype)
