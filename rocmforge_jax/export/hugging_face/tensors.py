"""Converts weights to the order of transformers and writes them to safetensors files."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax.export.hugging_face.families import Family
from rocmforge_jax.export.weights import Weight
from rocmforge_jax.gguf.replacing import replacing
from rocmforge_jax.models import DecoderConfig

#: Bytes of a file, beyond which the next one begins.
MOST_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"


def values(weight: Weight, name: str, family: Family, config: DecoderConfig, dtype) -> np.ndarray:
    """Converts a tensor of a GGUF file to the values and the row order of transformers."""
    found = weight.values()
    module = name.rpartition(".")[0]
    if family.interleaved and module.endswith((".attn_q", ".attn_k")):
        mixer: Any = config.layers[int(name.split(".")[1])].mixer
        found = _in_halves(found, mixer.heads if module.endswith("_q") else mixer.kv_heads)
    if family.norm_offset and module.endswith("norm"):
        found = found.astype(np.float32) - np.float32(family.norm_offset)
    return np.ascontiguousarray(found.astype(dtype))


def _in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head so that rotated pairs are half a head apart.

    rows: [heads * width, ...]. The two rows of each pair are adjacent.
    """
    by_pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.swapaxes(by_pairs, 1, 2).reshape(rows.shape)


def write_file(
    path: Path,
    names: Mapping[str, str],
    make: Callable[[str], np.ndarray],
    progress: Callable[[int], None],
) -> None:
    """Writes a safetensors file. An existing file is replaced only after all is written.

    Args:
        path: The path of the file.
        names: The name of each tensor in transformers -> its name in the GGUF file.
        make: Returns the values of a tensor, by its name in the GGUF file.
        progress: Called with the size of each computed tensor in bytes.
    """
    save = _require_safetensors()
    arrays = {}
    for name, tensor in names.items():
        arrays[name] = make(tensor)
        progress(arrays[name].nbytes)
    with replacing(path) as unfinished:
        save(arrays, unfinished, {"format": "pt"})


def _require_safetensors() -> Callable:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "safetensors files need the package safetensors: pip install 'rocmforge-jax[export]'"
        ) from None
    return safetensors.numpy.save_file


def write_files(
    folder: Path,
    names: Mapping[str, str],
    sizes: Mapping[str, int],
    make: Callable[[str], np.ndarray],
    progress: Callable[[int], None],
) -> None:
    """Writes a model to one safetensors file, or to several files and their index.

    Args:
        folder: The folder of the files.
        names: The name of each tensor in transformers -> its name in the GGUF file.
        sizes: The name of each tensor in transformers -> its size in bytes.
        make: Returns the values of a tensor, by its name in the GGUF file.
        progress: Called with the size of each computed tensor in bytes.
    """
    parts = list(_parts(names, sizes))
    if len(parts) == 1:
        write_file(folder / "model.safetensors", names, make, progress)
        return
    places = {}
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05}-of-{len(parts):05}.safetensors"
        write_file(folder / file, part, make, progress)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _parts(names: Mapping[str, str], sizes: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """Yields the `names` of each file; a file has at most MOST_BYTES or a single tensor."""
    part: dict[str, str] = {}
    for name, tensor in names.items():
        if part and sum(sizes[other] for other in part) + sizes[name] > MOST_BYTES:
            yield part
            part = {}
        part[name] = tensor
    yield part


def nbytes(weight: Weight, dtype) -> int:
    """Returns the size of a tensor in a dtype, in bytes."""
    return math.prod(weight.file_shape) * np.dtype(dtype).itemsize
