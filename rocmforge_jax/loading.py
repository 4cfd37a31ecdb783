"""Loads GGUF files as language models."""

import os
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from jax.typing import DTypeLike

from rocmforge_jax import compilation_cache
from rocmforge_jax.arguments import check_keywords, shown
from rocmforge_jax.backends import cpp
from rocmforge_jax.generate import check_context_length
from rocmforge_jax.gguf import GGUFError, GGUFFile, open_gguf
from rocmforge_jax.gguf.errors import about_file
from rocmforge_jax.language_model import LanguageModel
from rocmforge_jax.locate import resolve
from rocmforge_jax.models import (
    Decoder,
    DecoderConfig,
    LoadOptions,
    Source,
    abstract_decoder,
    decoder_of,
    plan_memory,
)
from rocmforge_jax.models.patterns import Patterns
from rocmforge_jax.progress import note, progress_bar, updates
from rocmforge_jax.text import (
    ChatTemplate,
    Tokenizer,
    chat_template_from_metadata,
    tokenizer_from_metadata,
)


@check_keywords
def load(
    path: str | os.PathLike = "demo",
    *,
    dtype: DTypeLike | None = None,
    cache_dtype: DTypeLike | None = None,
    activations: str = "int16",
    backend: str | None = None,
    context_length: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
    layers: int | None = None,
    dequantize: Patterns = None,
    revision: str | None = None,
    strict: bool = False,
    nextn: bool = False,
    progress: bool | None = None,
) -> LanguageModel:
    """Loads a GGUF model.

    Args:
        path: A GGUF file; or "demo", the small model of the package; or a name on the Hugging Face
            hub (needs the extra `hub`); or the address of a file's page there. Names are
            "owner/repository", "owner/repository:Q5_K_M" or "owner/repository/file.gguf". They may
            begin with "hf://" and have "@revision" after the repository. A text in the form of a
            path ("./a.gguf", "~/a.gguf", or in an existing folder) is never a name on the hub.
        dtype: The dtype of the computation: float32, bfloat16 or float16, as a name (also short,
            such as "bf16") or as a dtype of NumPy or JAX. Default: bfloat16 on GPUs and float32 on
            CPUs.
        cache_dtype: The dtype of keys and values in caches, in the same forms. Default: `dtype`.
        activations: The format of activations in products with packed weights, "int16", "int8" or
            "float": see `quant.matmul`.
        backend: "pallas", "cpp" or "xla" to use only that backend. "auto": the first backend that
            supports an operation. Default: ROCMFORGE_BACKEND, or "auto".
        context_length: The largest number of tokens of a text. Default: the context length of the
            training.
        device: The device of weights, caches and computation: a `jax.Device`, or its name, such as
            "cpu:1" or "cuda". Default: JAX's default device.
        mesh: Devices that share the model, instead of `device`: `jax.make_mesh((2, 4), ("data",
            "model"))` splits batches in two and weights, heads and caches in four. Either axis may
            be missing.
        layers: How many of the first layers to load. Default: all.
        dequantize: Patterns of the names of tensors, such as "*.ffn_*" or ["token_embd",
            "blk.0.*"], which become dense arrays of `dtype`; or True for all. Default: none.
        revision: A branch, a tag or a commit of the hub's repository. Default: its main branch.
        strict: Whether problems that normally cause a warning raise an error.
        nextn: Whether to load the blocks for multi-token prediction too, as `model.nextn`.
        progress: Whether to show a bar on stderr. Default: only if stderr is a terminal.

    Raises:
        TypeError: `path` is not a path.
        ValueError: An argument has an unsupported value. This is raised before anything is read.
        FileNotFoundError: There is no such file.
        GGUFError: The file is damaged or has no supported model.
        MemoryError: The model does not fit. The message has the sizes.
    """
    # All arguments are checked before anything is read.
    options = LoadOptions(
        dtype=dtype,
        cache_dtype=cache_dtype,
        activations=activations,
        backend=backend,
        context_length=check_context_length(context_length),
        device=device,
        mesh=mesh,
        layers=layers,
        dequantize=dequantize,
        strict=strict,
        nextn=nextn,
    )
    gguf, texts = open_gguf(_found(path, "load", revision)), []
    with progress_bar(progress=progress, unit="B", unit_scale=True, desc=gguf.path.name) as bar:

        def check(config, weights):
            _check_room(gguf, config, options)
            texts.extend(_tokenizer_and_template(gguf, options.strict))
            plan = plan_memory(
                gguf,
                config,
                options.numerics.cache_dtype,
                context_length=options.context_length,
                weights=weights,
                device=options.first,
                mesh=options.mesh,
            )
            note(bar, f"{gguf.path.name}: {plan}")
            if options.numerics.backend == "auto" and (advice := cpp.advice()):
                note(bar, advice)
            if not bar.disable:
                _name_the_compilation_cache(bar)
            plan.check()

        model = decoder_of(gguf, options, before_reading=check, progress=updates(bar))
    lm = LanguageModel(model, *texts, context_length=options.context_length)
    lm.source = Source.of(gguf)
    return lm


@check_keywords
def load_abstract(
    path: str | os.PathLike = "demo",
    *,
    dtype: DTypeLike | None = None,
    cache_dtype: DTypeLike | None = None,
    activations: str = "int16",
    backend: str | None = None,
    context_length: int | None = None,
    device: Any = None,
    mesh: Mesh | None = None,
    layers: int | None = None,
    dequantize: Patterns = None,
    revision: str | None = None,
    strict: bool = False,
    nextn: bool = False,
) -> Decoder:
    """Makes the decoder of a file with a `jax.ShapeDtypeStruct` in place of each array.

    It reads no weights. To restore a checkpoint of a loaded model with Orbax, pass the `nnx.state`
    of this decoder as the target.

    Args:
        path: As in `load`. The other arguments are the same too.
        dtype: The dtype of the computation.
        cache_dtype: The dtype of keys and values in caches.
        activations: The format of activations in products with packed weights.
        backend: The backend that computes.
        context_length: The largest number of tokens of a text.
        device: The device of the arrays.
        mesh: Devices that share the model. The arrays then have shardings.
        layers: How many of the first layers to make.
        dequantize: Patterns of the names of tensors that are dense.
        revision: A branch, a tag or a commit of the hub's repository.
        strict: Whether problems that normally cause a warning raise an error.
        nextn: Whether to make the blocks for multi-token prediction too.

    Raises:
        Exception: The same errors as `load`, except MemoryError.
    """
    options = LoadOptions(
        dtype=dtype,
        cache_dtype=cache_dtype,
        activations=activations,
        backend=backend,
        context_length=check_context_length(context_length),
        device=device,
        mesh=mesh,
        layers=layers,
        dequantize=dequantize,
        strict=strict,
        nextn=nextn,
    )
    return abstract_decoder(open_gguf(_found(path, "load_abstract", revision)), options)


def _found(path: str | os.PathLike, function: str, revision: str | None) -> Path:
    """Returns the file of a path or of a name on the hub; raises TypeError for other types."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{function}() takes a text or an os.PathLike as path, got {shown(path)}")
    return resolve(path, revision)


def _check_room(gguf: GGUFFile, config: DecoderConfig, options: LoadOptions) -> None:
    """Raises GGUFError if the context is too short for a prompt and an answer."""
    if config.context_length < 2 and options.context_length is None:
        raise GGUFError(
            f"{gguf.path}: {config.architecture}.context_length is {config.context_length}: there"
            " is no room for a prompt and an answer. Give context_length"
        )


def _name_the_compilation_cache(bar):
    """Writes a note about the compilation cache once per process, unless the cache is enabled."""
    global _named_the_cache
    if not (_named_the_cache or compilation_cache.is_enabled()):
        note(
            bar,
            "What XLA compiles ends with this process; rf.enable_compilation_cache() keeps it for"
            " the next one",
        )
    _named_the_cache = True


_named_the_cache = False


def _tokenizer_and_template(gguf: GGUFFile, strict: bool) -> tuple[Tokenizer, ChatTemplate]:
    with about_file(gguf.path):
        tokenizer = tokenizer_from_metadata(gguf.metadata, strict=strict)
        return tokenizer, chat_template_from_metadata(gguf.metadata)
