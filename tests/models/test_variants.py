"""Variants of families that no reference file has, in pieces, against a decoder in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.models import Decoder, read_config
from tests.models import float64
from tests.models.sample_files import EXPERTS, VOCABULARY, sample

TOKENS = 61
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 23,
}
HEADS = {"attention.head_count": [6, 6, 0, 0, 3], "attention.head_count_kv": [2, 0, 0, 0, 3]}


def ints(values):
    return np.array(values, np.int32)


def with_chunks_of(tokens, config):
    """A configuration whose chunks are shorter."""

    def short(layer):
        mixer = layer.mixer
        chunk = tokens if mixer.chunk else None
        return dataclasses.replace(layer, mixer=dataclasses.replace(mixer, chunk=chunk))

    return dataclasses.replace(config, layers=tuple(map(short, config.layers)))


def first(count, config):
    """A configuration with the first layers of another."""
    return dataclasses.replace(config, layers=config.layers[:count])


def phi3():
    factors = {
        f"rope_factors_{name}.weight": np.linspace(1, top, 4, dtype="<f4")
        for name, top in (("long", 30), ("short", 2))
    }
    keys = {"rope.scaling.original_context_length": 23, "rope.scaling.attn_factor": 1.2}
    return sample("phi3", factors, **keys)


#: One part a layer: a state space, attention, experts, a state space, other experts.
NEMOTRON_PARTS = {
    "attention.head_count_kv": [0, 2, 0, 0, 0],
    "feed_forward_length": [0, 0, 24, 0, 16],
    "expert_feed_forward_length": [0, 0, 24, 0, 16],
    "expert_used_count": [0, 0, 3, 0, 2],
}


def nemotron_h_moe():
    keys = {key: ints(value) for key, value in NEMOTRON_PARTS.items()}
    keys |= {"expert_count": 8, "expert_shared_feed_forward_length": 20, "moe_latent_size": 14}
    keys |= {"expert_weights_norm": True, "expert_weights_scale": 2.5, "block_count": 5}
    return sample("nemotron_h_moe", ["exp_probs_b.bias"], **keys)


#: Name -> the configuration of a decoder.
VARIANTS = {
    "exaone4 of 64 layers, the first five": lambda: first(
        5, read_config(sample("exaone4", block_count=64, **{"attention.sliding_window": 9}))[0]
    ),
    "deci with layers that do nothing": lambda: read_config(
        sample(
            "deci",
            block_count=5,
            feed_forward_length=ints([40, 24, 32, 0, 0]),
            **{key: ints(value) for key, value in HEADS.items()},
        )
    )[0],
    "llama4 with chunks that bite": lambda: with_chunks_of(
        16, read_config(sample("llama4", block_count=5, **EXPERTS))[0]
    ),
    "mistral3 beyond its original context": lambda: read_config(
        sample("mistral3", **YARN | {"attention.temperature_scale": 0.4})
    )[0],
    "olmo 3 beyond its original context": lambda: read_config(
        sample("olmo2", block_count=4, **YARN | {"attention.sliding_window": 9})
    )[0],
    "phi3 with long factors": lambda: read_config(phi3(), 24)[0],
    "phi3 beyond its short factors": lambda: read_config(phi3(), 23)[0],
    "glm4moe without norms of heads": lambda: read_config(sample("glm4moe", **EXPERTS))[0],
    "nemotron_h_moe with a latent and experts that differ": lambda: read_config(nemotron_h_moe())[
        0
    ],
    "granitehybrid that rotates, without experts": lambda: read_config(
        sample(
            "granitehybrid",
            ["ssm_conv1d.bias"],
            **{"attention.head_count_kv": ints([0, 2]), "rope.scaling.finetuned": True},
            **{"residual_scale": 0.5, "embedding_scale": 3.0, "attention.scale": 0.2},
        )
    )[0],
    "falcon-h1 with norms of its states": lambda: read_config(
        sample("falcon-h1", ["ssm_norm.weight", "ssm_conv1d.bias"])
    )[0],
    "qwen3vl with pairs that stand still": lambda: read_config(
        sample("qwen3vl", **{"rope.dimension_sections": ints([1, 1, 1, 1])})
    )[0],
    "qwen2vl with pairs that stand still": lambda: read_config(
        sample("qwen2vl", **{"rope.dimension_sections": ints([1, 1, 1, 1])})
    )[0],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant(name):
    decoder = Decoder(
        VARIANTS[name](), activations="float", backend="xla", rngs=nnx.Rngs(len(name))
    )
    tokens_BT = np.random.default_rng(3).integers(0, VOCABULARY, (1, TOKENS)).astype(np.int32)
    expected = float64.forward(decoder, tokens_BT)[0]
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def step(state, cache, tokens):
        return nnx.merge(graphdef, state)(tokens, cache)

    cache, found = decoder.init_cache(1, TOKENS + 2), []
    for start, end in ((0, 29), (29, 58), (58, 59), (59, 60), (60, 61)):
        logits_BTV, cache = step(state, cache, jnp.asarray(tokens_BT[:, start:end]))
        found.append(np.float64(logits_BTV[0]))
    assert np.linalg.norm(np.concatenate(found) - expected) / np.linalg.norm(expected) < 1e-5
