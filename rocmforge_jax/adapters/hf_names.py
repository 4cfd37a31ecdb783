"""Names and order of rows of linear layers in Hugging Face's models and in GGUF files."""

import re
from typing import Any

import numpy as np

from rocmforge_jax.models import Decoder

#: Of a layer: Hugging Face's name -> the file's.
_OF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TO_HF = {of_file: name for name, of_file in _OF_LAYER.items()}
_HEAD, _HEAD_IN_FILE = "lm_head", "output.weight"
#: Architectures of which llama.cpp's converter interleaves the rows of attn_q and attn_k.
_INTERLEAVED = {"llama", "granite", "mistral3", "smollm3"}
_AS_THEY_ARE = {
    "gemma",
    "gemma2",
    "gemma3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
}
_LAYER = re.compile(r"(?:(?:base_model|model|language_model)\.)*layers\.(\d+)\.([\w.]+)")
_OUTPUT = re.compile(r"(?:(?:base_model|model|language_model)\.)*lm_head")


def check_known(architecture: str) -> None:
    """Raises ValueError for an architecture whose names in Hugging Face's models are not known."""
    known = _INTERLEAVED | _AS_THEY_ARE
    if architecture not in known:
        raise ValueError(
            f"the names of {architecture} in Hugging Face's models are not known here, only those"
            f" of {', '.join(sorted(known))}: use a GGUF file"
        )


def hf_name(tensor: str) -> str | None:
    """Returns Hugging Face's name of a module, without "model."; None for an unknown tensor.

    "blk.3.attn_q.weight" gives "layers.3.self_attn.q_proj", "output.weight" gives "lm_head".
    """
    if tensor == _HEAD_IN_FILE:
        return _HEAD
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor)
    if match is None or match[2] not in _TO_HF:
        return None
    return f"layers.{match[1]}.{_TO_HF[match[2]]}"


def tensor_of(module: str) -> str | None:
    """Returns the tensor of a module with Hugging Face's name; None for one that is unknown."""
    if _OUTPUT.fullmatch(module):
        return _HEAD_IN_FILE
    match = _LAYER.fullmatch(module)
    if match is None or match[2] not in _OF_LAYER:
        return None
    return f"blk.{int(match[1])}.{_OF_LAYER[match[2]]}.weight"


def rows_as_in_hf(rows: np.ndarray, tensor: str, model: Decoder) -> np.ndarray:
    """Returns the rows [out, ...] of a tensor of a file in Hugging Face's order."""
    heads = _interleaved_heads(tensor, model)
    return rows if heads is None else _swapped(rows, (heads, -1, 2))


def rows_as_in_file(rows: np.ndarray, tensor: str, model: Decoder) -> np.ndarray:
    """Returns the rows [out, ...] of Hugging Face's tensor in the order of the file."""
    heads = _interleaved_heads(tensor, model)
    return rows if heads is None else _swapped(rows, (heads, 2, -1))


def _swapped(rows, sizes):
    """Swaps the second and third axis of rows [heads, halves, elements] or the like."""
    return np.ascontiguousarray(
        rows.reshape(*sizes, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
    )


def _interleaved_heads(tensor: str, model: Decoder) -> int | None:
    """Returns the heads of a tensor whose rows the file interleaves, None for any other."""
    match = re.fullmatch(r"blk\.(\d+)\.attn_([qk])\.weight", tensor)
    if match is None or model.config.architecture not in _INTERLEAVED:
        return None
    mixer: Any = model.config.layers[int(match[1])].mixer
    return mixer.heads if match[2] == "q" else mixer.kv_heads
