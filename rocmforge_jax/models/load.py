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
from rocmforge_jax.models.claims import claim, skipped
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.decoder import Decoder
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
    claims = claim(decoder, gguf, skipped(gguf, len(config.layers)))
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


def _report_unknown_keys(gguf, unknown, strict):
    if unknown:
        message = (
            f"{gguf.path}: keys of the architecture that are not known here: {', '.join(unknown)}"
        )
        if strict:
            raise GGUFError(message)
        warnings.warn(message, stacklevel=4)


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
