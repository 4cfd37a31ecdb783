"""What several families share: names of norms, and mixers that differ from layer to layer."""

import dataclasses

from rocmforge_jax.models.mixers import Attention
from rocmforge_jax.nn import RopeConfig

#: Norms whose results are added to the residual stream, besides those before.
POST_NORMS = dict(after_mixer="post_attention_norm", after_feed_forward="post_ffw_norm")


def with_windows(windows, rope_of_windows: RopeConfig | None = None):
    """Returns the argument `mixer` of `llama_like` for layers that differ in their window.

    Args:
        windows: Of each layer: see `KeyReader.windows`.
        rope_of_windows: Of layers with a window, where it is another.
    """

    def mixer(i: int, attention: Attention | None) -> Attention | None:
        if attention is None or windows[i] is None:
            return attention
        rotary = rope_of_windows or attention.rope
        return dataclasses.replace(attention, window=windows[i], rope=rotary)

    return mixer
