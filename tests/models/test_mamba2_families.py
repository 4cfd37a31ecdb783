"""Families with the state space of Mamba 2: what they make of keys, and what they refuse."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import (
    Attention,
    Decoder,
    DecoderConfig,
    Gated,
    Mamba2,
    Mixture,
    ParallelMixers,
    ShortConvolution,
    load_decoder,
    read_config,
)
from rocmforge_jax.nn import RELU2
from tests.models.sample_files import EXPERTS, sample

pytestmark = pytest.mark.core

STATE_SPACE = Mamba2(heads=4, head_width=6, state_width=10, groups=2, taps=4)
ATTENTION = Attention(6, 2, 8, None)
NAMES = ("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1")


def config(name, present=(), **keys):
    return read_config(sample(name, present, **keys))[0]


def ints(*values):
    return np.array(values, np.int32)


def parts(made):
    """The mixer, the feed-forward and the norms of each layer."""
    return [(layer.mixer, layer.feed_forward, layer.norms.names) for layer in made.layers]


def test_mamba2_has_state_spaces_alone():
    """Files count heads and hidden units as 0."""
    counts = {"attention.head_count": 0, "feed_forward_length": 0, "attention.head_count_kv": None}
    file = sample("mamba2", **counts)
    made, unused = read_config(file)
    assert parts(made) == [(STATE_SPACE, None, ("attn_norm",))] * 2
    assert "unknown" not in unused.values()


def test_granite_has_state_spaces_in_layers_without_kv_heads():
    keys = {"attention.head_count_kv": ints(0, 2, 0), "block_count": 3}
    factors = {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5}
    off = {"rope.scaling.finetuned": False}
    made = config("granitehybrid", logit_scale=4.0, **keys | factors | off)
    attention = dataclasses.replace(ATTENTION, scale=0.2)
    both = ("attn_norm", "ffn_norm")
    assert parts(made) == [(one, Gated(40), both) for one in (STATE_SPACE, attention, STATE_SPACE)]
    assert (made.embedding_scale, made.logit_scale) == (3.0, 0.25)
    assert {layer.residual_scale for layer in made.layers} == {0.5}
    rotating = config("granitehybrid", **keys)
    assert rotating.layers[1].mixer.rope.interleaved and rotating.logit_scale == 1


def test_granite_with_and_without_experts():
    shared = {
        "expert_shared_feed_forward_length": 20,
        "attention.head_count_kv": ints(0, 2),
    }
    made, unused = read_config(sample("granitehybrid", **EXPERTS | shared))
    feed = made.layers[0].feed_forward
    assert isinstance(feed, Mixture) and feed.shared_hidden == 20 and not unused
    assert (feed.routing.scoring, feed.routing.renormalize) == ("softmax", True)
    dense, unused = read_config(sample("granitehybrid", **shared))
    assert dense.layers[0].feed_forward == Gated(40) and "unknown" not in unused.values()


def test_nemotron_h_has_one_part_a_layer():
    """llama.cpp computes the feed-forward alone of a layer that counts KV heads as well."""
    heads, hidden = ints(0, 0, 2, 2, 0), ints(0, 40, 0, 32, 0)
    made = config(
        "nemotron_h",
        block_count=5,
        feed_forward_length=hidden,
        **{"attention.head_count_kv": heads},
    )
    norms = ("attn_norm",)
    plain = dict(activation=RELU2, gated=False)
    assert parts(made) == [
        (STATE_SPACE, None, norms),
        (None, Gated(40, **plain), norms),
        (ATTENTION, None, norms),
        (None, Gated(32, **plain), norms),
        (STATE_SPACE, None, norms),
    ]


def test_the_epsilon_of_nemotron_h():
    """That of RMS norms goes first; the other one is required."""
    one, other = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    for keys, epsilon in (({one: 3e-4, other: 2e-4}, 3e-4), ({one: None, other: 2e-4}, 2e-4)):
        made = config("nemotron_h", **keys)
        assert {layer.norms.epsilon for layer in made.layers} == {made.norm_epsilon} == {epsilon}
    with pytest.raises(GGUFError, match=f"nemotron_h.{other} must be a finite number"):
        config("nemotron_h", **{other: None})


def test_experts_of_nemotron_h_that_differ_from_layer_to_layer():
    keys = {
        "block_count": 4,
        "attention.head_count_kv": ints(0, 0, 2, 0),
        "feed_forward_length": ints(0, 24, 0, 16),
        "expert_feed_forward_length": ints(0, 24, 0, 16),
        "expert_used_count": ints(0, 3, 0, 2),
        "expert_count": 8,
        "expert_group_count": 1,
        "expert_shared_count": 1,
        "expert_shared_feed_forward_length": 20,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
        "moe_latent_size": 14,
    }
    made, unused = read_config(sample("nemotron_h_moe", ["exp_probs_b.bias"], **keys))
    feeds = [layer.feed_forward for layer in made.layers]
    assert feeds[0] is feeds[2] is None and not unused
    for feed, used, hidden in ((feeds[1], 3, 24), (feeds[3], 2, 16)):
        assert (feed.routing.used, feed.hidden, feed.latent) == (used, hidden, 14)
        assert (feed.gated, feed.activation, feed.shared_hidden) == (False, RELU2, 20)
        assert feed.selection_bias and feed.routing.renormalize
        assert (feed.routing.scoring, feed.routing.scale) == ("sigmoid", 2.5)


def test_a_layer_that_uses_no_experts_is_refused():
    keys = EXPERTS | {"feed_forward_length": ints(0, 24), "expert_used_count": ints(0, 0)}
    with pytest.raises(GGUFError, match="uses at least 1 expert, got 0"):
        config("nemotron_h_moe", **keys)


def test_falcon_h1_has_both_in_every_layer():
    """Its files may have the norm of states."""
    made = config("falcon-h1")
    without = dataclasses.replace(STATE_SPACE, norm=False)
    attention, state_space = made.layers[0].mixer.mixers
    assert state_space == without and not attention.rope.interleaved
    normed = config("falcon-h1", ["ssm_norm.weight"]).layers[0].mixer
    assert normed == ParallelMixers((attention, STATE_SPACE))
    assert normed.rope == attention.rope


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_do_not_fit_are_refused(name):
    heads = {"attention.head_count_kv": ints(0, 0), "feed_forward_length": ints(0, 0)}
    for keys, message in (
        ({"ssm.inner_size": 25}, "ssm.inner_size is 25, not a multiple of 4 heads"),
        ({"ssm.group_count": 3}, "4 heads and 3 groups"),
        ({"ssm.conv_kernel": 0}, "ssm.conv_kernel must be an integer from 1"),
        ({"ssm.state_size": None}, "ssm.state_size must be an integer from 1"),
    ):
        with pytest.raises(GGUFError, match=message):
            config(name, **heads | keys)


def test_mixers_that_cannot_be_side_by_side():
    lent = dataclasses.replace(ATTENTION, source=0)
    for mixers, message in (
        ((), "at least 1, got 0"),
        ((ATTENTION, lent), "Attention cannot be one of several"),
        ((ParallelMixers((ATTENTION,)),), "ParallelMixers cannot be one of several"),
    ):
        with pytest.raises(ValueError, match=message):
            ParallelMixers(mixers)
    twice = ParallelMixers((STATE_SPACE, ShortConvolution(48, 3), STATE_SPACE))
    sizes = dict(width=48, vocabulary=70, context_length=64, norm_epsilon=1e-5)
    with pytest.raises(ValueError, match="two mixers of a layer have ssm_a, ssm_conv1d"):
        Decoder(DecoderConfig.uniform(1, twice, Gated(40), **sizes), rngs=nnx.Rngs(0))


def test_a_mixture_with_an_empty_latent():
    feed = config("nemotron_h_moe", **EXPERTS, moe_latent_size=14).layers[0].feed_forward
    assert feed.latent == 14
    with pytest.raises(ValueError, match="latent must be at least 1, got -1"):
        dataclasses.replace(feed, latent=-1)


def test_a_norm_without_a_suffix(small_file, logits):
    """Files of Falcon-H1 have blk.N.ffn_norm."""
    tokens = np.arange(12, dtype=np.int32)[None]
    array = np.linspace(0.5, 1.5, 32, dtype=np.float32)
    names = {"blk.0.ffn_norm.weight": ("F32", array)}
    expected = logits(load_decoder(small_file(tensors=names)), tokens)
    bare = {"blk.0.ffn_norm.weight": None, "blk.0.ffn_norm": ("F32", array)}
    np.testing.assert_array_equal(logits(load_decoder(small_file(tensors=bare)), tokens), expected)
    both = {"blk.0.ffn_norm": ("F32", array)}
    with pytest.raises(GGUFError, match="blk.0.ffn_norm is not part of the architecture"):
        load_decoder(small_file(tensors=both))
