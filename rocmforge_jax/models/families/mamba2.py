"""Families with the state space of Mamba 2: alone, mixed with attention layers, or in parallel."""

from rocmforge_jax.models.config import DecoderConfig
from rocmforge_jax.models.families.dense import granite
from rocmforge_jax.models.families.shared import ssm_heads
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, Mamba2, ParallelMixers
from rocmforge_jax.models.parts import Mixer
from rocmforge_jax.models.read_feed_forward import read_routing
from rocmforge_jax.nn import RELU2


def mamba2(keys: KeyReader) -> DecoderConfig:
    """Mamba 2: a state space in every layer, without a feed-forward."""
    return llama_like(
        keys,
        mixers=(_state_space(keys),) * keys.layers,
        feed_forward_layers=(),
    )


def granitehybrid(keys: KeyReader) -> DecoderConfig:
    """Granite 4-H: Granite with state spaces in the layers without KV heads."""

    def mixer(i: int, attention: Attention | None) -> Mixer:
        return _state_space(keys) if attention is None else attention

    return granite(keys, mixer=mixer, logit_divisor=keys.optional_real("logit_scale") or 1.0)


def nemotron_h(keys: KeyReader) -> DecoderConfig:
    """Nemotron-H: each layer is a feed-forward, attention or a state space.

    A layer with hidden units is a feed-forward; otherwise, a layer with KV heads is attention.
    Attention has no rotation. Experts may read a low-rank projection of the residual stream.
    """
    hidden = keys.integers("feed_forward_length", low=0)
    key = "attention.layer_norm_{}epsilon"
    epsilon = keys.real(key.format(""), above=False)
    plain = dict(activation=RELU2, gated=False)

    def mixer(i: int, attention: Attention | None) -> Mixer | None:
        if hidden[i]:
            return None
        return _state_space(keys) if attention is None else attention

    return llama_like(
        keys,
        epsilon=keys.real(key.format("rms_"), epsilon, above=False),
        norms=dict(before_feed_forward="attn_norm"),
        attention=dict(rope=None),
        gated=plain,
        mixture=plain,
        routing=read_routing(keys) | dict(scoring="sigmoid"),
        mixer=mixer,
        feed_forward_layers=[i for i in range(keys.layers) if hidden[i]],
    )


def falcon_h1(keys: KeyReader) -> DecoderConfig:
    """Falcon-H1: attention and a state space in parallel in every layer."""

    def mixer(i: int, attention: Attention | None) -> Mixer:
        state_space = _state_space(keys, norm=keys.has(i, "ssm_norm.weight"))
        return state_space if attention is None else ParallelMixers((attention, state_space))

    return llama_like(keys, mixer=mixer)


def _state_space(keys: KeyReader, *, norm: bool = True) -> Mamba2:
    """Reads the sizes of a state space; `norm` is documented in `Mamba2`."""
    heads, head_width = ssm_heads(keys, "heads")
    return Mamba2(
        heads=heads,
        head_width=head_width,
        state_width=keys.integer("ssm.state_size"),
        groups=keys.integer("ssm.group_count"),
        taps=keys.integer("ssm.conv_kernel"),
        norm=norm,
    )
