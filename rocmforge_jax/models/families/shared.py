"""Helpers for several families: names of norms, and mixers that differ between layers."""

import dataclasses
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.nn import RopeConfig

#: Norms of the results of mixer and feed-forward, in addition to the norms before them.
POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")


#: Norms of the results, without norms before mixer and feed-forward.
ONLY_POST_NORMS = dict(before_mixer=None, before_feed_forward=None) | POST_NORMS
#: The norm before the feed-forward of families whose files call it post_attention_norm.
POST_ATTENTION_NORM = dict(before_feed_forward="post_attention_norm")


def ssm_heads(keys: KeyReader, what: str) -> tuple[int, int]:
    """Reads the number and width of a recurrent mixer's heads; error messages call them `what`."""
    heads, inner = keys.integer("ssm.time_step_rank"), keys.integer("ssm.inner_size")
    if inner % heads:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.ssm.inner_size is {inner}, not a multiple of"
            f" {heads} {what} (ssm.time_step_rank)"
        )
    return heads, inner // heads


def norm_of_heads(keys: KeyReader) -> dict[str, Any]:
    """Returns fields of `Attention`, for a family in which some models have QK norm per head."""
    return dict(qk_norm="head") if keys.has(0, "attn_q_norm.weight") else {}


def no_rope_every(period: int):
    """Makes the argument `mixer` of `llama_like`: the last layer of each period has no rotation.

    Args:
        period: The number of layers in a period.
    """

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None or (i + 1) % period:
            return attention
        return dataclasses.replace(attention, rope=None)

    return mixer


def with_shared_kv(
    attention: Attention, i: int, own: int, layers: int, window: int | None
) -> Attention:
    """Changes the attention of a layer in a model whose last layers have no KV cache of their own.

    The first `own` layers have a KV cache. The last of them has full attention, and the layer
    before it has a window. Later layers attend to the cache of the one with the same kind.

    Args:
        attention: The attention of the layer.
        i: The number of the layer.
        own: The number of layers with their own KV cache.
        layers: The number of all layers.
        window: The window of the layer, None for full attention.
    """
    if i >= own:
        return dataclasses.replace(attention, source=own - (1 if window is None else 2))
    return dataclasses.replace(attention, lends=own < layers and i >= own - 2)


#: Tensors that files may contain for layers without their own KV cache, which do not use them.
UNUSED_KV = frozenset(("attn_k", "attn_k_norm", "attn_v"))


def with_windows(windows, rope_of_windows: RopeConfig | None = None, *, full_rotates: bool = True):
    """Makes the argument `mixer` of `llama_like` for layers with different windows.

    Args:
        windows: The window of each layer: see `KeyReader.windows`.
        rope_of_windows: The rotary embedding of layers with a window. None: the same as in the
            other layers.
        full_rotates: Whether layers without a window rotate queries and keys.
    """

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None:
            return None
        if windows[i] is None:
            return attention if full_rotates else dataclasses.replace(attention, rope=None)
        rotary = rope_of_windows or attention.rope
        return dataclasses.replace(attention, window=windows[i], rope=rotary)

    return mixer
