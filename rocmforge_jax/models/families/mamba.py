"""Families with the state space of Mamba, alone or mixed with attention layers."""

import dataclasses

from rocmforge_jax.models.config import DecoderConfig, LayerConfig
from rocmforge_jax.models.feed_forward import Gated, Mixture
from rocmforge_jax.models.keys import KeyReader
from rocmforge_jax.models.llama_like import llama_like
from rocmforge_jax.models.mixers import Attention, Mamba
from rocmforge_jax.models.parts import Mixer


def mamba(keys: KeyReader) -> DecoderConfig:
    """Mamba and Falcon Mamba: a state space in every layer, without a feed-forward."""
    unit = "unit" if keys.flag("ssm.dt_b_c_rms", False) else None
    mixers = (_state_space(keys, unit),) * keys.layers
    return llama_like(keys, mixers=mixers, feed_forward_layers=())


def jamba(keys: KeyReader) -> DecoderConfig:
    """Jamba: state spaces in the layers without KV heads; some layers may have experts.

    Attention has no rotation.
    """

    def mixer(i: int, attention: Attention | None) -> Mixer:
        return _state_space(keys, "learned") if attention is None else attention

    hidden = keys.integers("feed_forward_length")
    config = llama_like(
        keys, attention=dict(rope=None), mixer=mixer, routing=dict(renormalize=False)
    )

    def layer(i: int, one: LayerConfig) -> LayerConfig:
        if not isinstance(one.feed_forward, Mixture) or keys.has(i, "ffn_gate_inp.weight"):
            return one
        return dataclasses.replace(one, feed_forward=Gated(hidden[i]))

    layers = tuple(layer(i, one) for i, one in enumerate(config.layers))
    return dataclasses.replace(config, layers=layers)


def _state_space(keys: KeyReader, norm) -> Mamba:
    """Reads the sizes of a state space; `norm` is documented in `Mamba`."""
    return Mamba(
        inner=keys.integer("ssm.inner_size"),
        state_width=keys.integer("ssm.state_size"),
        time_rank=keys.integer("ssm.time_step_rank"),
        taps=keys.integer("ssm.conv_kernel"),
        norm=norm,
    )
