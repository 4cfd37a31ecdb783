"""Families that are data on options of others: what they make of keys, and what they refuse."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import Gated, read_config
from rocmforge_jax.nn import XIELU
from tests.models.sample_files import EXPERTS, sample

pytestmark = pytest.mark.core

EPSILON = {"attention.layer_norm_epsilon": 1e-5}
NUMBERS = {
    f"xielu.{name}": np.array([value, 2 * value], np.float32)
    for name, value in dict(alpha_n=0.5, alpha_p=0.25, beta=0.125, eps=-1.0).items()
}


def config(name, present=(), **keys):
    return read_config(sample(name, present, **keys))[0]


def apertus(**numbers):
    file = sample("apertus", head_count=6)
    file.metadata.update({k: v for k, v in (NUMBERS | numbers).items() if v is not None})
    return [layer.feed_forward for layer in read_config(file)[0].layers]


def test_xielu_has_numbers_of_each_layer():
    first, second = XIELU(0.5, 0.25, 0.125, -1.0), XIELU(1.0, 0.5, 0.25, -2.0)
    plain = dict(gated=False)
    assert apertus() == [Gated(40, first, **plain), Gated(40, second, **plain)]
    (one,) = {feed.activation.beta for feed in apertus(**{"xielu.beta": 0.75})}
    assert one == 0.75


@pytest.mark.parametrize(
    "value", [None, 1, math.nan, np.array([1, 2], np.int32), np.ones(3, np.float32)]
)
def test_xielu_without_its_numbers(value):
    """These keys have no prefix in a file."""
    with pytest.raises(GGUFError, match=r"sample: xielu.alpha_p must be a float, or an array"):
        apertus(**{"xielu.alpha_p": value})
    with pytest.raises(GGUFError, match="alpha_p of xIELU must be finite, got inf"):
        apertus(**{"xielu.alpha_p": math.inf})


def test_xielu_has_no_gate():
    with pytest.raises(ValueError, match="xIELU .* without a gate"):
        Gated(40, XIELU(0.5, 0.25, 0.125, -1.0))


def test_factors_that_older_files_of_minicpm_imply():
    """The model divides its hidden numbers by its width over 256, and so its logits."""
    made = config("minicpm")
    assert made.embedding_scale == 12 and made.logit_scale == 256 / 48
    (scale,) = {layer.residual_scale for layer in made.layers}
    assert scale == pytest.approx(1.4 / math.sqrt(2))
    made = config("minicpm", embedding_scale=2.0, residual_scale=0.5, logit_scale=4.0)
    assert (made.embedding_scale, made.logit_scale) == (2.0, 0.25)
    assert {layer.residual_scale for layer in made.layers} == {0.5}


def test_baichuan_13b_has_alibi():
    heads = {"attention.head_count_kv": None}
    for layers, alibi in ((32, None), (40, 8.0)):
        mixer = config("baichuan", block_count=layers, **heads).layers[0].mixer
        assert (mixer.kv_heads, mixer.alibi, mixer.rope is None) == (6, alibi, alibi is not None)


def test_qwen_1_counts_hidden_units_twice():
    assert config("qwen", feed_forward_length=96).layers[0].feed_forward.hidden == 48


def test_the_norms_of_falcon():
    (norms,) = {layer.norms.names for layer in config("falcon", **EPSILON).layers}
    assert norms == ("attn_norm",)
    made = config("falcon", ["attn_norm_2.weight"], **EPSILON)
    assert made.layers[0].norms.before_mixer == "attn_norm_2"
    assert made.layers[0].norms.before_feed_forward == "attn_norm"
    assert all(layer.parallel for layer in made.layers)


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox_says_what_is_side_by_side(parallel):
    made = config("gptneox", use_parallel_residual=parallel, **EPSILON)
    assert {layer.parallel for layer in made.layers} == {parallel}
    assert {layer.norms.names for layer in made.layers} == {("attn_norm", "ffn_norm")}


def test_olmo_1_may_clamp():
    for keys, clamp in (({}, None), ({"attention.clamp_kqv": 8.0}, 8.0)):
        made = config("olmo", **EPSILON | keys)
        assert {layer.mixer.clamp for layer in made.layers} == {clamp}
        assert made.norm_kind == made.layers[0].norms.kind == "unit_layer"


def test_layers_of_trinity_that_neither_rotate_nor_have_a_window():
    keys = {"block_count": 5, "attention.sliding_window": 16, "rope.freq_base_swa": 500.0}
    made = [layer.mixer for layer in config("afmoe", **EXPERTS | keys).layers]
    assert [one.window for one in made] == [16, 16, 16, None, 16]
    assert [one.rope and one.rope.base for one in made] == [500.0] * 3 + [None, 500.0]
    full = config("afmoe", block_count=5, **EXPERTS).layers
    assert [layer.mixer.window for layer in full] == [None] * 5
    assert [layer.mixer.rope is None for layer in full] == [False] * 3 + [True, False]


def test_shared_experts_of_k_exaone():
    """Their width is that of one expert where the file does not say."""
    keys = EXPERTS | {"attention.sliding_window": 16, "expert_shared_count": 1}
    made = config("exaone-moe", **keys).layers[0].feed_forward
    assert made.shared_hidden == 24
    made = config("exaone-moe", expert_shared_feed_forward_length=20, **keys).layers[0]
    assert made.feed_forward.shared_hidden == 20


@pytest.mark.parametrize(("outputs", "gate"), [(6, "head"), (48, "width")])
def test_the_gate_of_laguna_is_as_wide_as_its_tensor(outputs, gate):
    keys = EXPERTS | {"attention.sliding_window": 16, "rope.freq_base": 500.0, "block_count": 5}
    file = sample("laguna", **keys | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0})
    for i in range(5):
        file.tensors[f"blk.{i}.attn_gate.weight"] = SimpleNamespace(shape=(outputs, 48))
    made = [layer.mixer for layer in read_config(file)[0].layers]
    assert {one.gate for one in made} == {gate}
    assert {one.gate_function for one in made} == {"softplus"}
    assert [one.window for one in made] == [None, 16, 16, 16, None]
    assert [one.rope.yarn is None for one in made] == [False, True, True, True, False]
    assert {one.rope.base for one in made} == {500.0}


def test_windows_of_mellum_have_no_context_extension():
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "block_count": 4}
    made = config("mellum", **EXPERTS | keys | {"attention.sliding_window": 16}).layers
    assert [layer.mixer.window for layer in made] == [16, 16, 16, None]
    assert [layer.mixer.rope.yarn is None for layer in made] == [True, True, True, False]


@pytest.mark.parametrize("name", ["plm", "minicpm3"])
def test_latent_attention_whose_heads_do_not_only_rotate(name):
    keys = {"rope.dimension_count": 4, "attention.kv_lora_rank": 12}
    widths = {"attention.key_length": 4, "attention.value_length": 6}
    with pytest.raises(GGUFError, match=f"{name}.attention.key_length must be .* from 5 .* has 4"):
        config(name, **keys | widths)
    made = config(name, **keys | widths | {"attention.key_length": 10}).layers[0].mixer
    assert (made.key_width, made.value_width, made.rank) == (6, 6, 12)
    assert made.scale == pytest.approx(10**-0.5)
