"""Helpers that the commands share."""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import sys
from pathlib import Path

from rocmforge_jax.ahead import read_ahead
from rocmforge_jax.cli import plugin_errors
from rocmforge_jax.locate import local
from rocmforge_jax.settings import cache_folder

#: What commands accept as a model.
MODEL = "a GGUF file, or a model of the hub: owner/repository:TYPE or owner/repository/file.gguf"


class UsageError(Exception):
    """Raised for a request that cannot be fulfilled; the message contains the reason."""


@contextlib.contextmanager
def usage_errors():
    """Converts a ValueError to a UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def print_json(value):
    """Prints one JSON value on a line.

    NaN and infinities, which JSON lacks, become strings.
    """
    print(json.dumps(_plain(value), ensure_ascii=not _is_unicode(sys.stdout), allow_nan=False))


def _is_unicode(stream) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def read_text(path: str) -> str:
    """Returns the text of a file, or of stdin for "-".

    Raises:
        UsageError: The text is not UTF-8.
    """
    raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{'stdin' if path == '-' else path} is not UTF-8 text: {error.reason} at byte"
            f" {error.start}"
        ) from None


def text(word: str) -> str:
    """Decodes a text argument as UTF-8; the system's encoding applies only to file names."""
    try:
        return os.fsencode(word).decode()
    except UnicodeEncodeError:  # the word did not come from the system's command line
        return word
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None


def version(package: str) -> str:
    """Returns the version of an installed package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def prepare_jax(model: str | None = None):
    """Prepares a fast start of a command. Call it before importing JAX.

    Args:
        model: The model that the command will load. Prefetches its weights.
    """
    gc.set_threshold(2_000_000, 50, 50)  # importing and tracing create a million permanent objects
    if model is not None and (path := local(model)) is not None and path.is_file():
        read_ahead(path)
    plugin_errors.shorten()
    # The prefetch thread imports `jax.extend` too. Importing it first keeps the threads from
    # waiting for each other's locks.
    import jax.extend.core  # noqa: F401

    from rocmforge_jax.compilation_cache import enable_compilation_cache

    if enable_compilation_cache() is None:
        print(
            f"rocmforge-jax: warning: {cache_folder()} cannot be written, so every start compiles"
            " anew; XDG_CACHE_HOME names another folder",
            file=sys.stderr,
        )


#: Field of `SamplingParams` -> type, default and description. They are repeated here so that help
#: does not import JAX; a test compares the defaults.
SAMPLING = {
    "temperature": (
        float,
        0.8,
        "0 takes the likeliest token, 1 samples the model's own distribution",
    ),
    "top_k": (int, 40, "keep the N likeliest tokens, 0 for all"),
    "typical_p": (
        float,
        1.0,
        "keep the most typical tokens until their probabilities add up to X, 1 for all",
    ),
    "top_p": (
        float,
        0.95,
        "keep the likeliest tokens until their probabilities add up to X, 1 for all",
    ),
    "min_p": (float, 0.05, "drop tokens less likely than X times the likeliest, 0 for none"),
    "repetition_penalty": (
        float,
        1.0,
        "divide the logits of tokens in the last --penalty-last-n tokens by X, 1 for none",
    ),
    "presence_penalty": (
        float,
        0.0,
        "subtract X from the logits of tokens in the last --penalty-last-n tokens",
    ),
    "frequency_penalty": (
        float,
        0.0,
        "subtract X for each time that a token is in the last --penalty-last-n tokens",
    ),
    "penalty_last_n": (int, 64, "how many tokens the penalties look back, at most 256"),
    "seed": (int, 0, "equal seeds give equal text"),
}


#: Field of `SamplingParams` -> llama.cpp's names for its option.
_ALIASES = {
    "temperature": ("--temp",),
    "repetition_penalty": ("--repeat-penalty",),
    "seed": ("-s",),
}


def add_context_length(
    parser: argparse.ArgumentParser, what: str = "most tokens of prompt and answer"
):
    """Adds the option --context-length, which `context_length` reads."""
    parser.add_argument(
        "--context-length",
        "-c",
        type=int,
        metavar="N",
        help=f"{what} (default: what the model was trained for)",
    )


def context_length(options: argparse.Namespace) -> int | None:
    """Returns the value of --context-length, checked before a model is loaded."""
    from rocmforge_jax.generate import check_context_length

    with usage_errors():
        return check_context_length(options.context_length)


def add_generation_arguments(parser: argparse.ArgumentParser):
    """Adds the options that `generation_options` reads."""
    parser.add_argument(
        "--max-tokens",
        "-n",
        type=int,
        default=256,
        metavar="N",
        help="most new tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        type=text,
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    group = parser.add_argument_group("sampling")
    for name, (kind, default, words) in SAMPLING.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            *_ALIASES.get(name, ()),
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=f"{words} (default: %(default)s)",
        )


def generation_options(options: argparse.Namespace) -> dict:
    """Returns keyword arguments for `LanguageModel.generate`, checked before a model is loaded."""
    from rocmforge_jax import SamplingParams
    from rocmforge_jax.text import StopStrings

    sampling = {name: getattr(options, name) for name in SAMPLING}
    with usage_errors():
        SamplingParams(**sampling)
        StopStrings(options.stop)
    if options.max_tokens < 1:
        raise UsageError(f"--max-tokens must be at least 1, got {options.max_tokens}")
    return {"max_tokens": options.max_tokens, "stop": options.stop, **sampling}
