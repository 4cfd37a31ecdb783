"""Checks the inputs of a decoder: always shapes and dtypes; values only outside of `jax.jit`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import POOLINGS, Cache


def _as_array(values) -> Any:
    """Converts a list or tuple of integers to an array; returns arrays and None unchanged.

    Raises TypeError for a text.
    """
    if isinstance(values, str | bytes):
        raise TypeError(
            "a model takes token ids [batch, tokens], not a text: tokenizer.encode(text) returns"
            " ids, and LanguageModel.generate takes texts"
        )
    return np.asarray(values, np.int32) if isinstance(values, list | tuple) else values


def checked_inputs(tokens_BT, cache: Cache | None, positions_BT, lengths_B, vocabulary: int) -> Any:
    """Returns tokens, positions and lengths as arrays; see `Decoder.__call__`.

    Raises ValueError unless they fit one another and the cache.
    """
    arrays = tokens_BT, positions_BT, lengths_B = tuple(
        map(_as_array, (tokens_BT, positions_BT, lengths_B))
    )
    integers = jnp.issubdtype(tokens_BT.dtype, jnp.integer)
    if tokens_BT.ndim != 2 or not integers or 0 in tokens_BT.shape:
        raise ValueError(
            "tokens must be integers [batch, tokens], at least one, got"
            f" {tokens_BT.dtype} {list(tokens_BT.shape)}"
        )
    B, T = tokens_BT.shape
    if cache is not None and not isinstance(cache, Cache):
        remedy = ": give its .cache" if isinstance(getattr(cache, "cache", None), Cache) else ""
        raise TypeError(
            f"cache must be a Cache of init_cache, got a {type(cache).__name__}{remedy}"
        )
    if cache is not None and cache.batch != B:
        raise ValueError(f"tokens have batch {B}, the cache has {cache.batch}")
    if cache is not None and cache.length < T:
        raise ValueError(f"{T} tokens do not fit a cache of {cache.length} slots")
    for name, array, shape in (("positions", positions_BT, (B, T)), ("lengths", lengths_B, (B,))):
        if array is None:
            continue
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(
                f"{name} must be integers {list(shape)}, got {array.dtype} {list(array.shape)}"
            )
    _check_room(T, cache, lengths_B)
    _check_ids(tokens_BT, lengths_B, vocabulary)
    return arrays


def check_length(T: int, rows: int) -> None:
    """Raises ValueError if T exceeds the learned position embeddings; `rows` is 0 without any."""
    if 0 < rows < T:
        raise ValueError(f"{T} tokens, but the model has embeddings of {rows} positions")


def check_positions(positions_BT, lengths_B, rows: int) -> None:
    """Raises ValueError for positions without a learned embedding, except in padding.

    Skipped under jit, and for models without learned positions, whose `rows` are 0.
    """
    if not rows or isinstance(positions_BT, Tracer) or isinstance(lengths_B, Tracer):
        return
    low, high = _range_of_real(positions_BT, lengths_B)
    if low < 0 or high >= rows:
        raise ValueError(
            f"a token has the position {low if low < 0 else high}, but the model has embeddings of"
            f" {rows} positions, from 0 on"
        )


def checked_pooling(config: DecoderConfig, pooling: str | None) -> str:
    """Returns the requested pooling, by default the one that the file names.

    Raises ValueError if neither is given, or if the model cannot compute it.
    """
    if pooling is None and config.pooling is None:
        raise ValueError(
            f"the file of this {config.architecture} names no pooling (pooling_type): give pooling="
            f" one of {', '.join(POOLINGS)}"
        )
    kind = config.pooling if pooling is None else pooling
    if kind not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {kind!r}")
    if kind == "rank" and config.embedding_head.classifier is None:
        raise ValueError(
            f"this {config.architecture} has no classifier (cls.*), so it cannot rank texts: give"
            f" pooling= one of {', '.join(POOLINGS[:-1])}"
        )
    return kind


def with_nan_past_the_cache(x_BTD, cache: Cache, starts_B, tokens: int):
    """Replaces rows by NaN whose tokens exceed the cache, where `checked_inputs` cannot check it.

    Under `jax.jit` the lengths are unknown while tracing, and XLA would overwrite the last slots.

    Args:
        x_BTD: The residual stream.
        cache: The cache before the tokens.
        starts_B: Its lengths.
        tokens: New tokens of each sequence, T, with padding.
    """
    if not isinstance(starts_B, Tracer):
        return x_BTD
    fits_B11 = (starts_B + tokens <= cache.length)[:, None, None]
    return jnp.where(fits_B11, x_BTD, jnp.array(jnp.nan, x_BTD.dtype))


def _known(array) -> np.ndarray | None:
    """Returns the values of an array; None for none, and for one that is being traced.

    NumPy's functions would trace an array of JAX under `jax.jit`, even one with known values.
    """
    return None if array is None or isinstance(array, Tracer) else np.asarray(array)


def _check_ids(tokens_BT, lengths_B, vocabulary: int):
    """Raises ValueError for ids outside the vocabulary, except in padding; skipped under jit."""
    if isinstance(tokens_BT, Tracer) or isinstance(lengths_B, Tracer):
        return
    low, high = _range_of_real(tokens_BT, lengths_B)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"tokens have the id {low if low < 0 else high}, the vocabulary has {vocabulary}"
        )


def _range_of_real(integers_BT, lengths_B) -> tuple[int, int]:
    """Returns the smallest and the largest of 0 and the integers of real tokens."""
    real = np.asarray(integers_BT)
    if lengths_B is not None:
        real = real[np.arange(real.shape[1]) < np.asarray(lengths_B)[:, None]]
    return int(np.min(real, initial=0)), int(np.max(real, initial=0))


def _check_room(T: int, cache, lengths_B):
    """Raises ValueError for lengths or tokens that do not fit; skipped under jit."""
    if (known_B := _known(lengths_B)) is not None:
        wrong_B = known_B[(known_B < 0) | (known_B > T)]
        if wrong_B.size:
            raise ValueError(
                f"lengths must be 0 to {T}, the tokens of a row, got {int(wrong_B[0])}"
            )
    if cache is not None and (held_B := _known(cache.lengths_B)) is not None:
        held = int(held_B.max())
        if held + T > cache.length:
            raise ValueError(
                f"{T} tokens after {held} do not fit a cache of {cache.length} slots: make a larger"
                f" one, init_cache(batch, length), or let it grow, cache.grown({held + T})"
            )
