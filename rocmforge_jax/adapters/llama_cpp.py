"""Adapters in llama.cpp's form: a GGUF file with two tensors for each adapted one.

Sources in llama.cpp: convert_lora_to_gguf.py, src/llama-adapter.cpp.
"""

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax import formats
from rocmforge_jax.adapters.tensors import Pair, matched
from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.gguf.errors import listed, quoted
from rocmforge_jax.gguf.writer import write_gguf

_ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
_ENDS = (".lora_a", ".lora_b")


def write(path: Path, pairs: dict[str, Pair], architecture: str) -> None:
    """Writes adapters as F32.

    A file has one alpha for all adapters. An adapter with another alpha is multiplied by the ratio.
    """
    alpha = next(iter(pairs.values())).alpha or 1.0
    metadata = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        _ALPHA: np.float32(alpha),
    }
    tensors = {}
    for name, pair in pairs.items():
        factor = np.float32(pair.alpha / np.float32(alpha))
        tensors[f"{name}{_ENDS[0]}"] = "F32", pair.a
        tensors[f"{name}{_ENDS[1]}"] = "F32", pair.b if factor == 1 else factor * pair.b
    write_gguf(path, metadata, tensors)


def check_replaces(path: Path) -> None:
    """Raises ValueError for an existing file that holds no adapter."""
    if not path.is_file():
        return
    kind = None
    with contextlib.suppress(GGUFError):
        kind = open_gguf(path).metadata.get("general.type")
    if kind != "adapter":
        raise ValueError(f"{path} is there and holds no adapter: name another file, or remove it")


def read(path: Path, architecture: str) -> dict[str, Pair]:
    """Reads adapters for a model of an architecture.

    Raises:
        GGUFError: The file is no adapter, or one for another architecture.
    """
    gguf = open_gguf(path)
    _check_kind(gguf, architecture)
    found: dict[str, Any] = {}
    problems = []
    for name, tensor in gguf.tensors.items():
        if name.endswith(_ENDS):
            pair = found.setdefault(name[: -len(_ENDS[0])], [None, None])
            pair[_ENDS.index(name[-len(_ENDS[0]) :])] = _values(tensor)
        elif name.endswith("_norm.weight"):
            warnings.warn(f"{path}: {name} is not loaded, as in llama.cpp", stacklevel=4)
        else:
            problems.append(f"{name} does not end in {' or '.join(_ENDS)}")
    problems += matched(found)
    if problems or not found:
        raise GGUFError(f"{path}: {listed(problems) or 'the adapter has no tensors'}")
    alpha: Any = gguf.metadata.get(_ALPHA, 0)
    return {name: Pair(a, b, _scale(alpha, a)) for name, (a, b) in found.items()}


def _check_kind(gguf, architecture: str) -> None:
    wanted = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": architecture,
    }
    for key, value in wanted.items():
        if (found := gguf.metadata.get(key)) != value:
            raise GGUFError(
                f"{gguf.path}: {key} is {quoted(found)}, an adapter for this model has {value!r}"
            )
    alpha = gguf.metadata.get(_ALPHA)
    if alpha is not None and not (isinstance(alpha, float) and math.isfinite(alpha)):
        raise GGUFError(f"{gguf.path}: {_ALPHA} must be a finite number, got {quoted(alpha)}")
    if _INVOCATION in gguf.metadata:
        warnings.warn(
            f"{gguf.path}: {_INVOCATION} is not used: the adapter changes every token",
            stacklevel=5,
        )


def _scale(alpha: float, a: np.ndarray) -> float:
    """Returns the factor of an adapter; without alpha it is 1, as in llama.cpp."""
    rank = a.shape[-2] if a.ndim > 1 else 1
    return alpha / max(rank, 1) if alpha else 1.0


def _values(tensor) -> np.ndarray:
    values = formats.dequantize(tensor.data, tensor.format)
    return np.asarray(values, np.float32).reshape(tensor.shape)
