"""Matches the tensors of a file with the variables of a Decoder."""

import warnings

from flax import nnx

from rocmforge_jax.gguf import GGUFError, TensorInfo
from rocmforge_jax.nn import Embedding, Experts, Linear

#: What a variable's last name is called in a file.
_SUFFIX = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "output_scale": "scale",
}
#: Tensors that the configuration has already read.
_CONFIG_TENSORS = {
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
}
#: Tensors of this suffix calibrate the rounding of activations, which is chosen at run time here.
_CALIBRATION = ".input_scale"


def tensor_name(path: tuple) -> str:
    """Returns the file's name of a variable of a Decoder.

    The path ("blk", 0, "attn_q", "kernel") gives "blk.0.attn_q.weight". A variable that files do
    not have, say of an adapter, keeps its own name.
    """
    return ".".join(map(str, (*path[:-1], _SUFFIX.get(path[-1], path[-1]))))


def skipped(gguf, layers: int) -> set[str]:
    """Returns the tensors that no module claims; says so where they hold something of a model."""
    predictors = {name for name in gguf.tensors if _number_of_block(name) >= layers}
    blocks = gguf.metadata.get(f"{gguf.architecture}.block_count")
    predictors = {name for name in predictors if _number_of_block(name) < blocks}
    if predictors:
        warnings.warn(
            f"{gguf.path}: the {len(predictors)} tensors of {blocks - layers} blocks for"
            " multi-token prediction are not loaded",
            stacklevel=4,
        )
    calibrations = {name for name in gguf.tensors if name.endswith(_CALIBRATION)}
    return predictors | calibrations | _CONFIG_TENSORS


def _number_of_block(name: str) -> int:
    """Returns N of a tensor "blk.N...", else -1."""
    head, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return int(number) if head == "blk" and number.isdecimal() and len(number) < 10 else -1


def claim(decoder, gguf, skipped: set[str]) -> list[tuple[nnx.Module, str, TensorInfo]]:
    """Returns (module, attribute, tensor) for every variable, in the order of the file."""
    found, problems = {}, []
    for path, module in nnx.iter_modules(decoder):
        for attribute, variable in vars(module).items():
            if not isinstance(variable, nnx.Variable):
                continue
            name = tensor_name((*path, attribute))
            expected = _file_shape(variable.shape, attribute)
            if name not in gguf.tensors:
                problems.append(f"{name} {list(expected)} is missing")
            elif gguf.tensors[name].shape != expected:
                problems.append(
                    f"{name} has shape {list(gguf.tensors[name].shape)}, expected {list(expected)}"
                )
            else:
                _require_type(gguf.tensors[name], module, attribute)
                found[name] = (module, attribute, gguf.tensors[name])
    names = {tensor_name(path) for path, _ in nnx.to_flat_state(nnx.state(decoder))}
    problems += [
        f"{name} is not part of the architecture"
        for name in gguf.tensors
        if name not in names | skipped
    ]
    if problems:
        raise GGUFError(
            f"{gguf.path} does not fit the architecture {gguf.architecture!r}: "
            + "; ".join(problems)
        )
    return sorted(found.values(), key=lambda claim: claim[2].offset)


def _file_shape(shape, attribute):
    """Returns the stored shape: a kernel (..., in, out) lies in a file as (..., out, in)."""
    return (
        (*shape[:-2], *shape[:-3:-1]) if attribute == "kernel" and len(shape) > 1 else tuple(shape)
    )


#: The weights that products read packed. Biases, filters and norms are plain arrays.
_PACKED = {(Linear, "kernel"), (Experts, "kernel"), (Embedding, "embedding")}


def _require_type(tensor: TensorInfo, module, attribute: str) -> None:
    """Raises GGUFError for a type that the variable cannot have."""
    packed = tensor.format.is_quantized and len(tensor.shape) > 1
    if packed and (type(module), attribute) in _PACKED:
        return
    if tensor.format.name not in ("F32", "F16", "BF16"):
        raise GGUFError(
            f"{tensor.name}: a {tensor.format} tensor of shape {list(tensor.shape)} is no weight of"
            " a model"
        )
