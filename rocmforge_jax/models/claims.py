"""Matches the tensors of a file with the variables of a Decoder."""

import dataclasses
import re
import warnings
from typing import Any

from flax import nnx

from rocmforge_jax.formats import Format
from rocmforge_jax.gguf import GGUFError, TensorInfo
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.feed_forward import ROUTER_NORM
from rocmforge_jax.models.joined import Joined, joined, without_ones
from rocmforge_jax.models.make import NAMES_IN_FILES
from rocmforge_jax.models.split_latents import HeadRows, split_latents
from rocmforge_jax.nn import Embedding, Experts, Linear

#: What a variable's last name is called in a file.
_SUFFIX = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "output_scale": "scale",
    "lora_a": "weight.lora_a",
    "lora_b": "weight.lora_b",
}
#: What Flax and `nn.LoRALinear` call the layer that an adapter is for.
_BASE = "base_module"
#: The end of a variable's name in a file, where the rule above does not give it.
_NAMES = {f"{ROUTER_NORM}.weight": "ffn_gate_inp.scale"}
#: Tensors that the configuration has already read.
CONFIG_TENSORS = {
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
}
#: Tensors of this suffix calibrate the rounding of activations, which is chosen at run time here.
_CALIBRATION = ".input_scale"
#: Beginnings of the names of tensors that compute no logits of a text -> what they are.
_BESIDES = {
    "v.": "for images",
    "mm.": "for images or sound",
    "a.": "for sound",
    "cls.": "of a classifier",
    "dense_2.": "for embeddings of texts",
    "dense_3.": "for embeddings of texts",
}
#: The weights that products read packed. Biases, filters and norms are plain arrays.
_PACKED = {(Linear, "kernel"), (Experts, "kernel"), (Embedding, "embedding")}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A variable, and the tensor that it takes.

    Attributes:
        name: What the file calls the variable.
        module: The module with the variable.
        attribute: The variable's name in it.
        tensor: The tensor of the file.
        shape: The tensor's shape, without the dimensions of 1 that files may add.
    """

    name: str
    module: nnx.Module
    attribute: str
    tensor: TensorInfo | Joined | HeadRows
    shape: tuple[int, ...]

    @property
    def is_packed(self) -> bool:
        """Whether the weight stays packed: whether it is quantised and products read it so."""
        packed = stays_packed(self.module, self.attribute, self.shape)
        return packed and self.tensor.format.is_quantized


def stays_packed(module: nnx.Module, attribute: str, shape) -> bool:
    """Returns whether products read a variable packed, if it is quantised."""
    return (type(module), attribute) in _PACKED and len(shape) > 1


def tensor_name(path: tuple) -> str:
    """Returns the file's name of a variable of a Decoder.

    The path ("blk", 0, "attn_q", "kernel") gives "blk.0.attn_q.weight", also where the layer has
    an adapter, whose matrices are "blk.0.attn_q.weight.lora_a" and ".lora_b". A variable that files
    do not have keeps its own name.
    """
    path = tuple(part for part in path if part != _BASE)
    modules = NAMES_IN_FILES.get(path[0], path[0]), *path[1:-1]
    name = ".".join(map(str, (*modules, _SUFFIX.get(path[-1], path[-1]))))
    for end, of_file in _NAMES.items():
        if name.endswith(f".{end}"):
            return name.removesuffix(end) + of_file
    return name


def claim(decoder, gguf, left_out: int = 0) -> tuple[list[Claim], list[str]]:
    """Returns a claim for every variable, in the order of the file, and all that does not fit.

    left_out: How many layers after those of the decoder nobody asked for.
    """
    tensors, problems = split_latents(gguf.tensors, decoder.config)
    if problems:
        return [], problems
    claims, names = [], set()
    for path, module in nnx.iter_modules(decoder):
        for attribute, variable in vars(module).items():
            if not isinstance(variable, nnx.Variable):
                continue
            name = tensor_name((*path, attribute))
            shape = _file_shape(variable.shape, attribute)
            tensor = _find(tensors, name)
            parts: Any = getattr(tensor, "parts", (tensor,))
            names |= {part.name for part in parts if part is not None}
            if tensor is None:
                problems.append(f"{name} {list(shape)} is missing")
            elif without_ones(tensor.shape) != without_ones(shape):
                problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
            elif not _is_weight(tensor.format):
                problems.append(
                    f"{name}: a {tensor.format} tensor of shape {list(tensor.shape)} is no weight"
                    " of a model"
                )
            else:
                claims.append(Claim(name, module, attribute, tensor, shape))
    left = gguf.tensors.keys() - names - _not_claimed(gguf, decoder.config, left_out)
    problems += [f"{name} is not part of the architecture" for name in gguf.tensors if name in left]
    return sorted(claims, key=lambda claim: claim.tensor.offset), problems


def refuse(gguf, problems: list[str]) -> None:
    """Raises GGUFError with the problems that `claim` found and their likely causes, if any."""
    if problems:
        causes = " and ".join(likely_causes(gguf))
        raise GGUFError(
            f"{gguf.path} does not fit the architecture {gguf.architecture!r}"
            f"{f' ({causes})' if causes else ''}: {listed(problems)}"
        )


def likely_causes(gguf) -> list[str]:
    """Returns what is known to make files whose tensors do not fit, where it shows."""
    names, causes = list(gguf.tensors), []
    if any(re.fullmatch(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight", name) for name in names):
        causes.append("its experts are stored one by one, as before April 2024: convert it again")
    if any(name.startswith(("model.layers.", "transformer.h.")) for name in names):
        causes.append("its tensors have the names of PyTorch: convert it with llama.cpp's script")
    if any(name.endswith((".lora_a", ".lora_b")) for name in names):
        causes.append("it has tensors of an adapter (LoRA): merge them into their model")
    claimed = gguf.metadata.get(f"{gguf.architecture}.block_count")
    found = 1 + max(map(_number_of_block, names), default=-1)
    if found and claimed != found:
        causes.append(f"block_count is {claimed}, the file has {found} blocks")
    return causes


def warn_of_left_out(gguf, config: DecoderConfig, left_out: int = 0) -> None:
    """Warns of tensors that hold something of a model and are not loaded.

    left_out: As for `claim`.
    """
    predictors, count = _predictors(gguf, config, left_out)
    if predictors:
        warnings.warn(
            f"{gguf.path}: the {len(predictors)} tensors of {count} blocks for multi-token"
            " prediction are not loaded",
            stacklevel=6,
        )
    loaded = config.embedding_head.names
    besides = [
        name
        for name in gguf.tensors
        if name.startswith(tuple(_BESIDES)) and name.rpartition(".")[0] not in loaded
    ]
    if besides:
        what = dict.fromkeys(_BESIDES[name.partition(".")[0] + "."] for name in besides)
        warnings.warn(
            f"{gguf.path}: {len(besides)} tensors {' and '.join(what)} are not loaded: they change"
            " no logits of a text",
            stacklevel=6,
        )


def _find(tensors, name: str) -> TensorInfo | Joined | HeadRows | None:
    """Returns the tensor of a name, or those that hold it together.

    Files of Falcon-H1 lack the suffix of ffn_norm, and those of Hunyuan 3 that of exp_probs_b.
    """
    for known in (name, name.removesuffix(".weight"), name.replace("_b.bias", "_b")):
        if known in tensors:
            return tensors[known]
    return joined(tensors, name)


def _not_claimed(gguf, config: DecoderConfig, left_out: int) -> set[str]:
    """Returns the tensors that no module claims and that may be there."""
    first = len(config.layers)
    later = {name for name in gguf.tensors if first <= _number_of_block(name) < first + left_out}
    unused = {
        f"blk.{i}.{name}.weight" for i, layer in enumerate(config.layers) for name in layer.unused
    }
    besides = {
        name
        for name in gguf.tensors
        if name.endswith(_CALIBRATION) or name.startswith(tuple(_BESIDES))
    }
    predictors, _ = _predictors(gguf, config, left_out)
    return predictors | later | besides | unused | CONFIG_TENSORS


def _predictors(gguf, config: DecoderConfig, left_out: int) -> tuple[set[str], int]:
    """Returns the tensors of the blocks that the configuration leaves out, and their number.

    They are blocks for multi-token prediction.
    """
    blocks: Any = gguf.metadata.get(f"{gguf.architecture}.block_count")
    read = len(config.layers) + left_out + len(config.nextn)
    return {name for name in gguf.tensors if read <= _number_of_block(name) < blocks}, blocks - read


def _number_of_block(name: str) -> int:
    """Returns N of a tensor "blk.N...", else -1."""
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if head == "blk" and number.isdecimal() and len(number) < 10 else -1


def _file_shape(shape, attribute) -> tuple[int, ...]:
    """Returns the stored shape: a kernel (..., in, out) lies in a file as (..., out, in)."""
    return (
        (*shape[:-2], *shape[:-3:-1]) if attribute == "kernel" and len(shape) > 1 else tuple(shape)
    )


def _is_weight(format: Format) -> bool:
    return format.is_quantized or format.name in ("F32", "F16", "BF16")
