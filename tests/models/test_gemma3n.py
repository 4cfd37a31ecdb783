"""Gemma 3n: what it makes of keys, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import Decoder, DecoderConfig, Gated, read_config
from rocmforge_jax.models.altup import AltUp
from tests.models.sample_files import KEYS, sample

pytestmark = pytest.mark.core

LAYERS = 25
PATTERN = np.array([True, True, True, True, False] * 5)


def config(**keys):
    more = {"attention.sliding_window": 16, "block_count": LAYERS}
    made, unused = read_config(sample("gemma3n", **more | keys))
    assert "unknown" not in unused.values()
    return made


def test_files_without_keys_are_those_of_the_published_models():
    made = config()
    assert made.streams == 4 and made.input_width == 256 and made.logit_cap == 30
    sources = {i: layer.mixer.source for i, layer in enumerate(made.layers) if i > 17}
    assert sources == {18: None, 19: None, 20: 18, 21: 18, 22: 18, 23: 18, 24: 19}
    assert [layer.mixer.lends for layer in made.layers] == [i in (18, 19) for i in range(LAYERS)]
    cutoffs = {layer.feed_forward.cutoff for layer in made.layers[:10]}
    assert cutoffs == {1.6448533535003662}
    assert {layer.feed_forward.cutoff for layer in made.layers[10:]} == {None}
    assert all(layer.laurel.rank == 64 for layer in made.layers)
    bases = [layer.mixer.rope.base for layer in made.layers]
    assert bases == [10000.0] * LAYERS and made.layers[4].mixer.window is None


def test_keys_of_a_file_decide():
    scale = np.array([0.5, -math.inf, 2.0, -math.inf, -math.inf], np.float32)
    made = config(
        **{
            "block_count": 5,
            "attention.sliding_window_pattern": PATTERN[:5],
            "attention.shared_kv_layers": 0,
            "activation_sparsity_scale": scale,
            "altup.num_inputs": 3,
            "altup.active_idx": 0,
            "embedding_length_per_layer_input": 20,
            "rope.freq_base": 1e6,
            "final_logit_softcapping": 0.0,
        }
    )
    assert made.streams == 3 and made.input_width == 20 and made.logit_cap is None
    assert [layer.feed_forward.cutoff for layer in made.layers] == [0.5, None, 2.0, None, None]
    assert not any(layer.mixer.lends for layer in made.layers)
    assert [layer.mixer.rope.base for layer in made.layers] == [1e4] * 4 + [1e6]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"altup.active_idx": 1}, "altup.active_idx must be .* 0 to 0.* the file has 1"),
        ({"altup.num_inputs": 1}, "altup.num_inputs must be .* the file has 1"),
        (
            {"activation_sparsity_scale": np.ones(3, np.float32)},
            "activation_sparsity_scale must be .* 25 blocks, .* an array of 3",
        ),
        (
            {"activation_sparsity_scale": np.full(LAYERS, math.nan, np.float32)},
            "activation_sparsity_scale must be",
        ),
        ({"attention.shared_kv_layers": 24}, "shared_kv_layers must be .* to 23"),
    ],
)
def test_keys_that_are_wrong(keys, message):
    with pytest.raises(GGUFError, match=message):
        config(**keys)


def test_streams_and_cutoffs_that_do_not_fit():
    with pytest.raises(ValueError, match="at least 2 residual streams, got 1"):
        AltUp(1)
    with pytest.raises(ValueError, match="cutoff .* ffn_gate"):
        Gated(8, fused=True, cutoff=1.0)
    with pytest.raises(ValueError, match="cutoff .* ffn_gate"):
        Gated(8, gated=False, cutoff=1.0)
    made = config()
    layers = (dataclasses.replace(made.layers[0], altup=None), *made.layers[1:])
    with pytest.raises(ValueError, match=r"differ in their residual streams: \[1, 4\]"):
        dataclasses.replace(made, layers=layers)


def test_a_fresh_decoder_can_be_trained():
    """Gradients reach every parameter."""
    layers = config(block_count=5, **{"embedding_length_per_layer_input": 6}).layers
    made = DecoderConfig(layers[:2], KEYS["embedding_length"], 70, 64, 1e-6)
    decoder = Decoder(made, rngs=nnx.Rngs(0))

    def loss(decoder):
        return (decoder(np.arange(9)[None])[0] ** 2).mean()

    gradients = nnx.to_flat_state(nnx.state(nnx.grad(loss)(decoder)))
    still = {path for path, value in gradients if not np.any(np.asarray(value.get_value()))}
    assert still == set()
