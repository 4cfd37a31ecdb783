"""Checks and combines a caller's masks and segments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.nn import Cache, Visible


def embeds_like_tokens(inputs_embeds, config: DecoderConfig) -> Any:
    """Returns placeholder ids for tokens that are given as embeddings, int32 [B, T].

    Raises ValueError for a wrong shape or dtype, or if the model's layers also read token ids.
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
    """Numbers the segments, which are runs of equal ids.

    Returns:
        The number of each token's segment and the token's position within it, both int32 [B, T].
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
    """Combines a mask and segments into one `Visible`; returns None if both are None.

    Args:
        config: The model's configuration. All of its layers must support masks.
        mask: bool [B, T, S], or an array that broadcasts to this shape, or None.
        segments: The result of `segment_places`, or None.
        cache: A cache with S slots. None: S is T.
        starts_B: The number of earlier tokens in the cache.
        lengths_B: The number of real tokens of each sequence. None: all T are real.
        B: The number of sequences.
        T: The number of tokens.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the model does not support masks.
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
    """Raises ValueError if a layer is recurrent: it passes a state from token to token."""
    for number, layer in enumerate(config.layers):
        mixer = layer.mixer
        if mixer is not None and not getattr(mixer, "takes_mask", False):
            raise ValueError(
                f"layer {number} of this {config.architecture} is a {type(mixer).__name__}, whose"
                " state passes from token to token: it takes no mask and no segments"
            )
