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

from rocmforge_jax import ahead, formats
from rocmforge_jax.arguments import flag
from rocmforge_jax.backends import DEFAULT, Numerics
from rocmforge_jax.gguf import GGUFError, GGUFFile, TensorInfo
from rocmforge_jax.gguf.errors import listed, shortened
from rocmforge_jax.models.architectures import read_config
from rocmforge_jax.models.claims import Claim, claim, likely_causes, refuse, warn_of_left_out
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.decoder import Decoder
from rocmforge_jax.models.split_latents import warn_of_split_latents
from rocmforge_jax.nn import only_shapes
from rocmforge_jax.quant import QParam, QTensor, default_layout, repack


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
    nextn: bool = False,
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
        nextn: Whether the blocks for multi-token prediction are loaded as well, as
            `Decoder.nextn`.
        before_reading: Called with the configuration once every tensor is known to fit; it may
            raise.
        progress: Called with (bytes loaded, bytes in all) after each tensor.

    Raises:
        GGUFError: Lists all tensors that are missing, unclaimed or of another shape.
    """
    strict, nextn = flag("strict", strict), flag("nextn", nextn)
    config, unused = read_config(gguf, context_length, nextn=nextn)
    _report_unknown_keys(gguf, unused, strict)
    decoder = _without_weights(
        config,
        dtype=default_dtype() if dtype is None else dtype,
        activations=activations,
        backend=backend,
    )
    claims, problems = claim(decoder, gguf)
    refuse(gguf, problems)
    _warn(gguf, config, claims)
    if before_reading is not None:
        before_reading(config)
    total, done = sum(one.tensor.nbytes for one in claims), 0
    for one in claims:
        setattr(one.module, one.attribute, _variable(one, layout, decoder.numerics))
        one.tensor.forget()
        done += one.tensor.nbytes
        if progress is not None:
            progress(done, total)
    ahead.stop()
    return decoder


def file_problems(gguf: GGUFFile) -> list[str]:
    """Returns everything that keeps `load_decoder` from loading a file.

    It reads no weights, and warns of what `load_decoder` would warn about.
    """
    try:
        config, unused = read_config(gguf)
    except GGUFError as error:
        return [str(error)]
    _report_unknown_keys(gguf, unused)
    claims, problems = claim(_without_weights(config), gguf)
    if problems:
        return likely_causes(gguf) + problems
    _warn(gguf, config, claims)
    return []


def _warn(gguf: GGUFFile, config: DecoderConfig, claims: list[Claim]) -> None:
    """Warns of what a file has and a decoder lacks, and of what is not kept as it is."""
    warn_of_left_out(gguf, config)
    warn_of_split_latents(gguf, [one.tensor for one in claims])


def _without_weights(config: DecoderConfig, **options) -> Decoder:
    """Makes a decoder of shapes."""
    with only_shapes():
        return Decoder(config, rngs=None, **options)


def _report_unknown_keys(gguf, unused: dict[str, str], strict: bool = False):
    unknown = [key for key, why in unused.items() if why == "unknown"]
    if unknown:
        message = (
            f"{gguf.path}: keys of the architecture that are not known here:"
            f" {listed([shortened(key) for key in unknown], ', ')}"
        )
        if strict:
            raise GGUFError(message)
        warnings.warn(message, stacklevel=5)


def _variable(claim: Claim, layout, numerics: Numerics) -> nnx.Variable:
    """Makes the variable of a tensor.

    Quantised matrices of products stay packed. Everything else becomes an nnx.Param in the file's
    dtype, or in float32 where it is quantised, kernels transposed to (in, out).
    """
    transposed, format = claim.attribute == "kernel", claim.tensor.format
    if claim.is_packed:
        layout = layout or default_layout(format, numerics=numerics)
        return QParam(_packed(claim, layout, transposed))
    data = claim.tensor.data
    if format.is_quantized:
        values = formats.dequantize(data, format)
    else:
        values = jnp.asarray(data.view(np.dtype(format.fields[0].dtype)))
    values = values.reshape(claim.shape)
    return nnx.Param(jnp.swapaxes(values, -1, -2) if transposed and values.ndim > 1 else values)


def _packed(claim: Claim, layout, transposed) -> QTensor:
    tensor = claim.tensor
    data = tensor.data.reshape(*claim.shape[:-1], -1)
    if layout == "groups":
        # Read ahead were the shapes of the file, which may have dimensions of 1 more.
        whole = isinstance(tensor, TensorInfo) and tensor.shape == claim.shape
        planes = ahead.take(tensor) if whole else None
        if planes is not None:
            return QTensor.from_planes(planes, tensor.format, transposed=transposed)
        with contextlib.suppress(NotImplementedError):
            planes = repack.planes_of(data, tensor.format)
            return QTensor.from_planes(planes, tensor.format, transposed=transposed)
    return _split(data, tensor.format.name, layout, transposed)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(row_bytes, type_name, layout, transposed):
    return QTensor.from_bytes(row_bytes, type_name, layout=layout, transposed=transposed)
