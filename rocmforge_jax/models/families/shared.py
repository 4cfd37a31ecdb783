"""What several families share: names of norms, and mixers that differ from layer to layer."""

import dataclasses
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.nn import RopeConfig

#: Norms whose results are added to the residual stream, besides those before.
POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")


#: The norms of a layer without norms before its parts.
ONLY_POST_NORMS = dict(before_mixer=None, before_feed_forward=None) | POST_NORMS
#: The norm before the feed-forward, where it has the name of one that others have after the mixer.
POST_ATTENTION_NORM = dict(before_feed_forward="post_attention_norm")


def ssm_heads(keys: KeyReader, what: str) -> tuple[int, int]:
    """Reads the heads of a recurrent mixer, which messages call `what`, and the width of each."""
    heads, inner = keys.integer("ssm.time_step_rank"), keys.integer("ssm.inner_size")
    if inner % heads:
        raise GGUFError(
            f"{keys.path}: {keys.architecture}.ssm.inner_size is {inner}, not a multiple of"
            f" {heads} {what} (ssm.time_step_rank)"
        )
    return heads, inner // heads


def norm_of_heads(keys: KeyReader) -> dict[str, Any]:
    """Returns the changes of every `Attention` of a family whose files may have norms of heads."""
    return dict(qk_norm="head") if keys.has(0, "attn_q_norm.weight") else {}


def no_rope_every(period: int):
    """Returns the argument `mixer` of `llama_like` for a last layer of a period that rotates none.

    period: Layers from one without rotation to the next.
    """

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None or (i + 1) % period:
            return attention
        return dataclasses.replace(attention, rope=None)

    return mixer


def with_shared_kv(
    attention: Attention, i: int, own: int, layers: int, window: int | None
) -> Attention:
    """Returns the attention of a layer where only the first layers have keys and values.

    A later layer attends to those of the last layer before with full attention, or with a window.
    The last of the first layers has full attention, the one before it a window.

    Args:
        attention: Of the layer.
        i: Its number.
        own: Layers with keys and values.
        layers: All layers.
        window: Of the layer, None for full attention.
    """
    if i >= own:
        return dataclasses.replace(attention, source=own - (1 if window is None else 2))
    return dataclasses.replace(attention, lends=own < layers and i >= own - 2)


#: The tensors that a file may have and a layer without keys and values of its own does not use.
UNUSED_KV = frozenset(("attn_k", "attn_k_norm", "attn_v"))


def with_windows(windows, rope_of_windows: RopeConfig | None = None, *, full_rotates: bool = True):
    """Returns the argument `mixer` of `llama_like` for layers that differ in their window.

    Args:
        windows: Of each layer: see `KeyReader.windows`.
        rope_of_windows: Of layers with a window, where it is another.
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
