"""Families with the state space of Mamba: what they make of keys, and what they refuse."""

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import Attention, Gated, Mamba, Mixture, read_config
from tests.models.sample_files import sample

pytestmark = pytest.mark.core

SIZES = {
    "ssm.inner_size": 96,
    "ssm.state_size": 10,
    "ssm.time_step_rank": 7,
    "ssm.conv_kernel": 4,
}
STATE_SPACE = dict(inner=96, state_width=10, time_rank=7, taps=4)


def test_mamba_has_state_spaces_alone():
    """Files count heads and hidden units as 0."""
    counts = {"attention.head_count": 0, "feed_forward_length": 0, "attention.head_count_kv": 0}
    made, unused = read_config(sample("mamba", **SIZES | counts))
    assert {layer.mixer for layer in made.layers} == {Mamba(**STATE_SPACE)}
    assert {layer.feed_forward for layer in made.layers} == {None}
    assert "unknown" not in unused.values()
    falcon, _ = read_config(sample("mamba", **SIZES | {"ssm.dt_b_c_rms": True}))
    assert falcon.layers[0].mixer == Mamba(**STATE_SPACE, norm="unit")


def test_jamba_has_attention_and_experts_in_some_layers():
    keys = SIZES | {"attention.head_count_kv": np.array([0, 2, 0], np.int32), "block_count": 3}
    experts = {"expert_count": 8, "expert_used_count": 3}
    file = sample("jamba", **keys | experts)
    file.tensors["blk.1.ffn_gate_inp.weight"] = None
    made, _ = read_config(file)
    recurrent = Mamba(**STATE_SPACE, norm="learned")
    mixers = [recurrent, Attention(6, 2, 8, None), recurrent]
    assert [layer.mixer for layer in made.layers] == mixers
    first, second, third = (layer.feed_forward for layer in made.layers)
    assert first == third == Gated(40) and isinstance(second, Mixture)
    assert (second.hidden, second.routing.used, second.routing.renormalize) == (40, 3, False)
    dense, _ = read_config(sample("jamba", **keys))
    assert {layer.feed_forward for layer in dense.layers} == {Gated(40)}


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_sizes_that_are_wrong(name):
    counts = {"attention.head_count_kv": np.array([0, 0], np.int32)}
    for key in SIZES:
        for value in (None, 0):
            with pytest.raises(GGUFError, match=f"{name}.{key} must be an integer from 1"):
                read_config(sample(name, **SIZES | counts | {key: value}))


def test_norms_of_another_kind():
    with pytest.raises(ValueError, match="norm must be learned, unit or None, got 'rms'"):
        Mamba(**STATE_SPACE, norm="rms")  # pyright: ignore[reportArgumentType]
