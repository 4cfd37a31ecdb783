"""Masks and segments of a caller: which tokens see which, and where a segment begins."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import Cache, Visible


def embeds_like_tokens(inputs_embeds, config: DecoderConfig) -> Any:
    """Returns placeholders for the ids of tokens that are given as embeddings, int32 [B, T].

    Raises ValueError for embeddings of another shape or dtype, and for layers that read ids.
    """
    shape, dtype = jnp.shape(inputs_embeds), jnp.result_type(inputs_embeds)
    if len(shape) != 3 or shape[2] != config.width or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"inputs_embeds must be floats [batch, tokens, {config.width}], got {dtype}"
            f" {list(shape)}"
        )
    if config.input_width:
        raise ValueError(
            f"the layers of this {config.architecture} read the ids of tokens too, so it takes no"
            " inputs_embeds"
        )
    return np.zeros(shape[:2], np.int32)


def segment_places(segment_ids, B: int, T: int) -> tuple[Any, Any]:
    """Returns the numbers of the segments and the places within them, int32 [B, T] each.

    A segment is a run of equal ids.
    """
    segments = jnp.asarray(segment_ids)
    if segments.shape != (B, T) or not jnp.issubdtype(segments.dtype, jnp.integer):
        raise ValueError(
            f"segment_ids must be integers {[B, T]}, got {segments.dtype} {list(segments.shape)}"
        )
    begins_BT = jnp.concatenate(
        [jnp.ones((B, 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    numbers_BT = jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    order_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    starts_BT = jnp.where(begins_BT, order_BT, 0)
    return numbers_BT, order_BT - jax.lax.cummax(starts_BT, axis=1)


def visible(
    config: DecoderConfig, mask, segments, cache: Cache | None, starts_B, lengths_B, B: int, T: int
) -> Visible | None:
    """Returns what tokens see by a mask and by segments, None without either.

    Args:
        config: Its layers must be able to take a mask.
        mask: Bool [B, T, S] or what broadcasts to it, or None.
        segments: What `segment_places` returned, or None.
        cache: The cache, whose slots S are then, or None: S is T.
        starts_B: The tokens that the cache holds.
        lengths_B: How many of the T tokens are real, or None.
        B: Sequences.
        T: Tokens.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the model cannot do it.
    """
    if mask is None and segments is None:
        return None
    _require_masks(config)
    if segments is not None and cache is not None:
        raise ValueError(
            f"segment_ids with a cache of {cache.length} slots: packed sequences are computed"
            " without a cache"
        )
    S = T if cache is None else cache.length
    order_BT = starts_B[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
    slots_BS = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    seen_BTS = jnp.ones((B, T, S), bool)
    if mask is not None:
        seen_BTS = _checked_mask(mask, B, T, S)
        if cache is not None:
            seen_BTS &= slots_BS[:, None] < (starts_B + T)[:, None, None]
    elif config.causal:
        seen_BTS = slots_BS[:, None] <= order_BT[..., None]
    if segments is not None:
        numbers_BT, places_BT = segments
        seen_BTS &= numbers_BT[..., None] == numbers_BT[:, None]
        order_BT, slots_BS = places_BT, places_BT
    if cache is None and lengths_B is not None:
        real_BS = jnp.arange(S, dtype=jnp.int32)[None] < jnp.asarray(lengths_B, jnp.int32)[:, None]
        seen_BTS &= real_BS[:, None]
    return Visible(seen_BTS, order_BT, slots_BS)


def _checked_mask(mask, B: int, T: int, S: int):
    mask = jnp.asarray(mask)
    fits = mask.ndim == 3 and all(
        size in (1, wanted) for size, wanted in zip(mask.shape, (B, T, S))
    )
    if mask.dtype != bool or not fits:
        raise ValueError(
            f"mask must be bool {[B, T, S]}, or with axes of 1, got {mask.dtype} {list(mask.shape)}"
        )
    return jnp.broadcast_to(mask, (B, T, S))


def _require_masks(config: DecoderConfig) -> None:
    """Raises ValueError for a layer whose mixer passes a state from token to token."""
    for number, layer in enumerate(config.layers):
        mixer = layer.mixer
        if mixer is not None and not getattr(mixer, "takes_mask", False):
            raise ValueError(
                f"layer {number} of this {config.architecture} is a {type(mixer).__name__}, whose"
                " state passes from token to token: it takes no mask and no segments"
            )
