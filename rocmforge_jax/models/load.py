"""Loads a Decoder from an open file.

Every tensor is claimed by a variable and every variable by a tensor. Otherwise one error lists all
that do not fit, before any weight is read.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rocmforge_jax import ahead
from rocmforge_jax.backends import DEFAULT
from rocmforge_jax.gguf import GGUFError, GGUFFile
from rocmforge_jax.gguf.errors import listed, shortened
from rocmforge_jax.models.architectures import read_config
from rocmforge_jax.models.claims import Claim, claim, likely_causes, refuse, warn_of_left_out
from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.decoder import Decoder
from rocmforge_jax.models.load_options import LoadOptions
from rocmforge_jax.models.patterns import Patterns, matching
from rocmforge_jax.models.place import Placer
from rocmforge_jax.models.sharding import Shares
from rocmforge_jax.models.split_latents import warn_of_split_latents
from rocmforge_jax.nn import only_shapes

#: Called with the configuration, and the bytes of the weights on the device that takes most.
BeforeReading = Callable[[DecoderConfig, int], None]


def load_decoder(
    gguf: GGUFFile,
    *,
    dtype: DTypeLike | None = None,
    cache_dtype: DTypeLike | None = None,
    activations: str = DEFAULT.activations,
    backend: str | None = None,
    layout: str | None = None,
    context_length: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
    layers: int | None = None,
    dequantize: Patterns = None,
    strict: bool = False,
    nextn: bool = False,
    before_reading: BeforeReading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Makes a Decoder with the weights of a file, packed as they are.

    Args:
        gguf: The open file.
        dtype: Of the computation, default `default_dtype()`.
        cache_dtype: Of the keys and values in caches, default `dtype`.
        activations: See `Decoder`.
        backend: See `Decoder`.
        layout: Of the planes, default the one that is fast on the device.
        context_length: See `read_config`.
        device: See `load`.
        mesh: See `load`.
        layers: See `load`.
        dequantize: See `load`.
        strict: Whether unknown keys of the architecture are refused instead of warned about.
        nextn: Whether the blocks for multi-token prediction are loaded as well, as
            `Decoder.nextn`.
        before_reading: See `BeforeReading`. It is called once every tensor is known to fit, and may
            raise.
        progress: Called with (bytes loaded, bytes in all) after each tensor.

    Raises:
        GGUFError: Lists all tensors that are missing, unclaimed or of another shape.
    """
    options = LoadOptions(
        dtype=dtype,
        cache_dtype=cache_dtype,
        activations=activations,
        backend=backend,
        layout=layout,
        context_length=context_length,
        device=device,
        mesh=mesh,
        layers=layers,
        dequantize=dequantize,
        strict=strict,
        nextn=nextn,
    )
    return decoder_of(gguf, options, before_reading=before_reading, progress=progress)


def decoder_of(
    gguf: GGUFFile,
    options: LoadOptions,
    *,
    before_reading: BeforeReading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Does what `load_decoder` does, with checked options.

    The file has been read when this returns: it may then change.
    """
    decoder, claims, placer = _fitted(gguf, options)
    if before_reading is not None:
        before_reading(decoder.config, sum(map(placer.nbytes, claims)))
    total, done, variables = sum(one.tensor.nbytes for one in claims), 0, []
    for one in claims:
        variables.append(placer.variable(one))
        setattr(one.module, one.attribute, variables[-1])
        one.tensor.forget()
        done += one.tensor.nbytes
        if progress is not None:
            progress(done, total)
    ahead.stop()
    jax.block_until_ready([variable.get_value() for variable in variables])
    return decoder


def abstract_decoder(gguf: GGUFFile, options: LoadOptions) -> Decoder:
    """Makes what `decoder_of` makes, with a `jax.ShapeDtypeStruct` for each array.

    It reads no weights.
    """
    decoder, claims, placer = _fitted(gguf, options)
    for one in claims:
        setattr(one.module, one.attribute, placer.abstract(one))
    return decoder


def _fitted(gguf: GGUFFile, options: LoadOptions) -> tuple[Decoder, list[Claim], Placer]:
    """Makes a decoder of shapes, and finds the tensors that its variables take."""
    whole, unused = read_config(gguf, options.context_length, nextn=options.nextn)
    _report_unknown_keys(gguf, unused, options.strict)
    config = _first_layers(gguf, whole, options.layers)
    left_out, numerics = len(whole.layers) - len(config.layers), options.numerics
    decoder = _without_weights(
        config,
        dtype=numerics.dtype,
        cache_dtype=numerics.cache_dtype,
        activations=numerics.activations,
        backend=numerics.backend,
        mesh=numerics.mesh,
    )
    claims, problems = claim(decoder, gguf, left_out)
    refuse(gguf, problems)
    dense = matching(options.dequantize, [one.name for one in claims])
    _warn(gguf, config, claims, left_out)
    shares = None if options.mesh is None else Shares(config, options.mesh)
    if shares is not None:
        shares.warn(claims, gguf.path)
    return decoder, claims, Placer(options, dense, shares)


def _first_layers(gguf: GGUFFile, config: DecoderConfig, layers: int | None) -> DecoderConfig:
    """Returns the configuration of the first layers."""
    if layers is None or layers == len(config.layers):
        return config
    if layers > len(config.layers):
        raise ValueError(f"{gguf.path} has {len(config.layers)} layers, layers is {layers}")
    if config.input_width:
        raise ValueError(
            f"{gguf.path}: the inputs of its {len(config.layers)} layers are one tensor, which is"
            f" not cut: load it without layers={layers}"
        )
    return dataclasses.replace(config, layers=config.layers[:layers])


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


def _warn(gguf: GGUFFile, config: DecoderConfig, claims: list[Claim], left_out: int = 0) -> None:
    """Warns of what a file has and a decoder lacks, and of what is not kept as it is."""
    warn_of_left_out(gguf, config, left_out)
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
