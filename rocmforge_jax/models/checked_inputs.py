"""Checks the inputs of a decoder: always shapes and dtypes; values only outside of `jax.jit`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import POOLINGS, Cache


def _as_array(values) -> Any:
    """Converts a list or tuple of integers to an array; returns arrays and None unchanged."""
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
    if lengths_B is not None and not isinstance(lengths_B, Tracer):
        low, high = np.min(lengths_B), np.max(lengths_B)
        if low < 0 or high > T:
            raise ValueError(f"lengths must be 0 to {T}, the tokens of a row, got {low} to {high}")
    if cache is not None and not isinstance(cache.lengths_B, Tracer):
        held = int(np.max(cache.lengths_B))
        if held + T > cache.length:
            raise ValueError(f"{T} tokens after {held} do not fit a cache of {cache.length} slots")
