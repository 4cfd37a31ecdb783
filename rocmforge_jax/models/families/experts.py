"""Families of mixtures of experts."""

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.shared import with_windows
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import head_width, llama_like, rope, window_rope
from rocmforge_jax.nn import swiglu_oai


def gpt_oss(keys: KeyReader) -> DecoderConfig:
    """gpt-oss: sinks, windows in every second layer, clamped SwiGLU in every expert."""
    full = rope(keys, head_width(keys), interleaved=False)
    return llama_like(
        keys,
        experts_required=True,
        norms=dict(before_feed_forward="post_attention_norm"),
        attention=dict(sinks=True),
        mixer=with_windows(keys.windows(2), window_rope(keys, full)),
        mixture=dict(activation=swiglu_oai()),
        routing=dict(scoring="softmax_of_chosen", renormalize=False),
    )
