"""Loads a Decoder from an open file.

Every tensor is claimed by a variable and every variable by a tensor. Otherwise one error lists all
that do not fit, before any weight is read.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax import ahead
from rocmforge_jax.backends import DEFAULT, Numerics
from rocmforge_jax.gguf import GGUFError, GGUFFile, TensorInfo
from rocmforge_jax.models.architectures import read_config
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.decoder import Decoder
from rocmforge_jax.nn import Embedding, Experts, Linear, only_shapes
from rocmforge_jax.quant import QParam, QTensor, default_layout, repack

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


def default_dtype():
    """Returns the dtype in which models compute: float32 on CPUs, bfloat16 on GPUs."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16


def load_decoder(
    gguf: GGUFFile,
    *,
    dtype=None,
    activations: str = DEFAULT.activations,
    backend: str | None = None,
    layout: str | None = None,
    context_length: int | None = None,
    strict: bool = False,
    before_reading: Callable[[DecoderConfig], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Makes a Decoder with the weights of a file, packed as they are, on the default device.

    Args:
        gguf: The open file.
        dtype: Of the computation, default `default_dtype()`.
        activations: See `Decoder`.
        backend: See `Decoder`.
        layout: Of the planes, default the one that is fast on the device.
        context_length: See `read_config`.
        strict: Whether unknown keys of the architecture are refused instead of warned about.
        before_reading: Called with the configuration once every tensor is known to fit; it may
            raise.
        progress: Called with (bytes loaded, bytes in all) after each tensor.

    Raises:
        GGUFError: Lists all tensors that are missing, unclaimed or of another shape.
    """
    config, unused = read_config(gguf, context_length)
    _report_unknown_keys(gguf, [key for key, why in unused.items() if why == "unknown"], strict)
    with only_shapes():
        decoder = Decoder(
            config,
            dtype=dtype or default_dtype(),
            activations=activations,
            backend=backend,
            rngs=None,
        )
    claims = _claim(decoder, gguf, _skipped(gguf, len(config.layers)))
    if before_reading is not None:
        before_reading(config)
    total, done = sum(tensor.nbytes for _, _, tensor in claims), 0
    for module, attribute, tensor in claims:
        setattr(module, attribute, _variable(tensor, attribute, layout, decoder.numerics))
        tensor.forget()
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    ahead.stop()
    return decoder


def tensor_name(path: tuple) -> str:
    """Returns the file's name of a variable of a Decoder.

    The path ("blk", 0, "attn_q", "kernel") gives "blk.0.attn_q.weight". A variable that files do
    not have, say of an adapter, keeps its own name.
    """
    return ".".join(map(str, (*path[:-1], _SUFFIX.get(path[-1], path[-1]))))


def _report_unknown_keys(gguf, unknown, strict):
    if unknown:
        message = (
            f"{gguf.path}: keys of the architecture that are not known here: {', '.join(unknown)}"
        )
        if strict:
            raise GGUFError(message)
        warnings.warn(message, stacklevel=4)


def _skipped(gguf, layers: int) -> set[str]:
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


def _claim(decoder, gguf, skipped: set[str]) -> list[tuple[nnx.Module, str, TensorInfo]]:
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


def _variable(tensor: TensorInfo, attribute: str, layout, numerics: Numerics) -> nnx.Variable:
    """Makes the variable of a tensor.

    Quantised matrices stay packed. Everything else becomes an nnx.Param in the file's dtype,
    kernels transposed to (in, out).
    """
    transposed = attribute == "kernel"
    if tensor.format.is_quantized:
        layout = layout or default_layout(tensor.format, numerics=numerics)
        return QParam(_packed(tensor, layout, transposed))
    values = jnp.asarray(tensor.data.view(np.dtype(tensor.format.fields[0].dtype)))
    return nnx.Param(jnp.swapaxes(values, -1, -2) if transposed and values.ndim > 1 else values)


def _packed(tensor, layout, transposed) -> QTensor:
    if layout == "groups":
        if (planes := ahead.take(tensor)) is not None:
            return QTensor.from_planes(planes, tensor.format, transposed=transposed)
        with contextlib.suppress(NotImplementedError):
            planes = repack.planes_of(tensor.data, tensor.format)
            return QTensor.from_planes(planes, tensor.format, transposed=transposed)
    return _split(tensor.data, tensor.format.name, layout, transposed)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(row_bytes, type_name, layout, transposed):
    return QTensor.from_bytes(row_bytes, type_name, layout=layout, transposed=transposed)
