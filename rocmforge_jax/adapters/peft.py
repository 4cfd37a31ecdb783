"""Adapters in PEFT's form: a folder with adapter_config.json and adapter_model.safetensors."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rocmforge_jax.adapters.hf_names import (
    check_known,
    hf_name,
    rows_as_in_file,
    rows_as_in_hf,
    tensor_of,
)
from rocmforge_jax.adapters.tensors import Pair, matched
from rocmforge_jax.adapters.wrap import adaptable
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.gguf.replacing import replacing
from rocmforge_jax.models import Decoder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
#: A weight of the base, which no adapter changes; biases may be trained.
_COPY = re.compile(r".+\.base_layer\.weight")
_MATRIX = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


def write(folder: Path, pairs: dict[str, Pair], model: Decoder, base_model: str | None) -> None:
    """Writes both files; others in the folder stay.

    Raises ValueError for layers that Hugging Face's models do not have.
    """
    check_known(model.config.architecture)
    safetensors = _safetensors()
    names = {tensor: hf_name(tensor) for tensor in pairs}
    if unknown := [tensor for tensor, name in names.items() if name is None]:
        raise ValueError(
            f"{listed(unknown, ', ')} have no known name in Hugging Face's models: use a GGUF file"
        )
    modules = {
        name if name == "lm_head" else f"model.{name}": tensor for tensor, name in names.items()
    }
    arrays = {}
    for module, tensor in modules.items():
        pair = pairs[tensor]
        arrays[f"{_PREFIX}{module}.lora_A.weight"] = pair.a
        arrays[f"{_PREFIX}{module}.lora_B.weight"] = rows_as_in_hf(pair.b, tensor, model)
    config = _config({module: pairs[tensor] for module, tensor in modules.items()}, base_model)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as weights, replacing(folder / CONFIG) as about:
        about.write_text(json.dumps(config, indent=2) + "\n")
        safetensors.save_file(arrays, weights, metadata={"format": "pt"})


def read(folder: Path, model: Decoder) -> dict[str, Pair]:
    """Reads adapters for a model.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The adapter is of a kind that is not supported, or has unknown tensors.
    """
    check_known(model.config.architecture)
    config, arrays = _read_config(folder), _read_arrays(folder)
    found: dict[str, Any] = {}
    problems, modules = [], {}
    if copies := [name for name in arrays if _COPY.fullmatch(name)]:
        # PEFT adds them beside the adapter of an output head.
        warnings.warn(
            f"{folder}: {listed(copies)}: weights of the base model, which are not loaded",
            stacklevel=3,
        )
    for name, array in arrays.items():
        if name in copies:
            continue
        match = _MATRIX.fullmatch(name)
        tensor = None if match is None else tensor_of(match[1])
        if match is None or tensor is None:
            problems.append(f"{name} belongs to no adapter of a layer that is known here")
            continue
        modules[tensor] = match[1].removeprefix(_PREFIX)
        pair = found.setdefault(tensor, [None, None])
        pair["AB".index(match[2])] = array.astype(np.float32)
    problems += matched(found)
    if problems or not found:
        raise ValueError(f"{folder}: {listed(problems) or 'the adapter has no tensors'}")
    pairs = {}
    for tensor, (a, b) in found.items():
        heads_fit = b.ndim == 2 and b.shape[0] == _outputs(model, tensor)
        b = rows_as_in_file(b, tensor, model) if heads_fit else b
        pairs[tensor] = Pair(a, b, _scale(config, modules[tensor], a.shape[0]))
    return pairs


def _outputs(model: Decoder, tensor: str) -> int | None:
    """Returns the outputs of a layer, None for one that the model lacks."""
    layer = adaptable(model).get(tensor)
    return None if layer is None else layer.kernel.shape[-1]


def _config(pairs: dict[str, Pair], base_model: str | None) -> dict[str, Any]:
    """Returns what PEFT's LoraConfig reads."""
    first = next(iter(pairs.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {n: p.rank for n, p in pairs.items() if p.rank != first.rank},
        "alpha_pattern": {n: p.alpha for n, p in pairs.items() if p.alpha != first.alpha},
        "target_modules": _targets(list(pairs)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _targets(modules: list[str]) -> list[str]:
    """Returns the last names of the modules, if those occur equally often, else the whole names."""
    last = [module.rpartition(".")[2] for module in modules]
    of_layers = [name for name in last if name != "lm_head"]
    even = len({of_layers.count(name) for name in of_layers}) <= 1
    return sorted(set(last)) if even else sorted(modules)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}: it holds no adapter in PEFT's form")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{path}: peft_type is {kind!r}, only 'LORA' is supported")
    if config.get("use_dora"):
        raise ValueError(f"{path}: use_dora is true: adapters of DoRA are not supported")
    return config


def _read_arrays(folder: Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        beside = folder / "adapter_model.bin"
        remedy = ", only adapter_model.bin: save it as safetensors" if beside.is_file() else ""
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}{remedy}")
    try:
        return _safetensors().load_file(path)
    except ImportError:
        raise
    except Exception as error:  # the package has an exception of its own
        raise ValueError(f"{path} is no file of safetensors: {error}") from None


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """Returns the factor of an adapter: alpha / rank, or alpha / sqrt(rank) with use_rslora."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"[\w.]+", pattern):
            raise ValueError(
                f"alpha_pattern has the regular expression {pattern!r}, only names are supported"
            )
        if f".{module}".endswith(f".{pattern}"):
            alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ValueError(f"lora_alpha must be a number, got {alpha!r}")
    return alpha / (max(rank, 1) ** 0.5 if config.get("use_rslora") else max(rank, 1))


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "adapters in PEFT's form need safetensors: pip install 'rocmforge-jax[export]'"
        ) from None
    return safetensors.numpy
