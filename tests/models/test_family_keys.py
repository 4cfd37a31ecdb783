"""What families make of keys: variants that no reference file has."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import Projection, Temperature, read_config
from rocmforge_jax.nn import Yarn
from tests.models.sample_files import EXPERTS, sample

pytestmark = pytest.mark.core

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 23,
}


def config(name, present=(), **keys):
    return read_config(sample(name, present, **keys))[0]


def mixers(name, present=(), **keys):
    return [layer.mixer for layer in config(name, present, **keys).layers]


def ints(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    "name", ["qwen3moe", "granitemoe", "glm4moe", "bailingmoe2", "minimax-m2", "lfm2moe", "llama"]
)
def test_groups_of_experts_are_those_of_every_family(name):
    """llama.cpp reads them for all of them."""
    more = {"expert_group_count": 4, "expert_group_used_count": 2, "expert_used_count": 2}
    made = config(name, **EXPERTS | more)
    routings = {layer.feed_forward.routing for layer in made.layers}
    assert {(one.groups, one.groups_used) for one in routings} == {(4, 2)}


@pytest.mark.parametrize("name", ["llama4", "ernie4_5-moe"])
def test_experts_in_every_so_many_layers(name):
    more = {"interleave_moe_layer_step": 2, "leading_dense_block_count": 2, "block_count": 6}
    kinds = [type(layer.feed_forward).__name__ for layer in config(name, **EXPERTS | more).layers]
    assert kinds == ["Gated"] * 3 + ["Mixture", "Gated", "Mixture"]


@pytest.mark.parametrize(
    "name",
    [
        *("bailingmoe", "bailingmoe2", "dots1", "ernie4_5-moe", "glm4moe", "hunyuan-moe"),
        *("lfm2moe", "llama4", "minimax-m2", "olmoe", "qwen3vlmoe"),
    ],
)
def test_a_file_without_its_experts_is_refused(name):
    with pytest.raises(GGUFError, match=f"{name}.expert_count must be an integer from 1"):
        config(name)


def test_layers_of_deci():
    heads = {"attention.head_count": ints(6, 6, 0, 0), "attention.head_count_kv": ints(2, 0, 0, 0)}
    hidden = {"feed_forward_length": ints(40, 24, 24, 0)}
    layers = config("deci", block_count=4, **heads | hidden).layers
    kinds = [None if layer.mixer is None else type(layer.mixer).__name__ for layer in layers]
    assert kinds == ["Attention", "Projection", None, None]
    assert layers[1].mixer == Projection(48)
    assert [layer.feed_forward and layer.feed_forward.hidden for layer in layers] == [
        *(40, 24, 24),
        None,
    ]
    both = ("attn_norm", "ffn_norm")
    assert [layer.norms.names for layer in layers] == [both, both, ("ffn_norm",), ()]


def test_exaone4_has_windows_in_64_layers_only():
    windows = {"attention.sliding_window": 9, "rope.freq_base_swa": 5.0, "rope.freq_base": 77.0}
    small, unused = read_config(sample("exaone4", block_count=30, **windows))
    assert {layer.mixer.window for layer in small.layers} == {None}
    assert all(layer.mixer.rope.base == 77 for layer in small.layers)
    assert len(unused) == 2 and "unknown" not in unused.values()
    large = mixers("exaone4", block_count=64, **windows)
    assert [one.window for one in large] == [9, 9, 9, None] * 16
    assert [one.rope and one.rope.base for one in large] == [77.0, 77.0, 77.0, None] * 16
    assert mixers("exaone4", block_count=64)[0].window == 4096


def test_olmo_3_extends_the_context_of_full_layers_alone():
    keys = YARN | {"attention.sliding_window": 9, "rope.freq_base_swa": 5.0, "rope.freq_base": 77.0}
    ropes = [one.rope for one in mixers("olmo2", block_count=8, **keys)]
    assert [rope.yarn for rope in ropes] == [None, None, None, Yarn(23)] * 2
    assert {(rope.base, rope.scale) for rope in ropes[:3]} == {(77.0, 1.0)}
    assert ropes[3].scale == 8
    without = mixers("olmo2", block_count=8, **YARN)
    assert {(one.window, one.rope.yarn) for one in without} == {(None, Yarn(23))}


def test_the_temperature_of_mistral3():
    keys = {"attention.temperature_scale": 0.25}
    assert mixers("mistral3", **keys)[0].temperature == Temperature(0.25, 64)
    assert mixers("mistral3", **keys | YARN)[0].temperature == Temperature(0.25, 23)
    for none in ({}, {"attention.temperature_scale": 0.0}):
        assert mixers("mistral3", **none | YARN)[0].temperature is None


def test_layers_of_llama4():
    made = mixers("llama4", **EXPERTS, **{"block_count": 5, "rope.freq_base_swa": 5.0})
    assert [one.chunk for one in made] == [8192, 8192, 8192, None, 8192]
    assert [one.rope and one.rope.base for one in made] == [5.0, 5.0, 5.0, None, 5.0]
    assert [one.qk_norm for one in made] == ["unit", "unit", "unit", None, "unit"]
    sharp = Temperature(0.1, 8192, 1)
    assert [one.temperature for one in made] == [None, None, None, sharp, None]
    assert all(one.rotates_first for one in made if one.rope)


def test_chunks_of_llama4_that_a_file_lists():
    pattern = {"attention.sliding_window_pattern": np.array([False, True, True, True, False])}
    made = mixers("llama4", **EXPERTS | pattern | {"block_count": 5, "rope.freq_base_swa": 5.0})
    assert [one.chunk for one in made] == [None, 8192, 8192, 8192, None]
    assert [one.rope and one.rope.base for one in made] == [10000.0, 5.0, 5.0, None, 10000.0]


def test_maverick_has_no_norms_of_heads():
    """llama.cpp knows it by its 128 experts."""
    made = config("llama4", **EXPERTS | {"expert_count": 128})
    assert {layer.mixer.qk_norm for layer in made.layers} == {None}
    assert {layer.feed_forward.shared_hidden for layer in made.layers} == {24}


def test_llama4_without_chunks_is_refused():
    with pytest.raises(GGUFError, match="llama4.attention.sliding_window is 0"):
        config("llama4", **EXPERTS | {"attention.sliding_window": 0})


def test_granite_can_be_without_rotation_and_granitemoe_cannot():
    key = {"rope.scaling.finetuned": False}
    assert mixers("granite", **key)[0].rope is None
    assert mixers("granitemoe", **key)[0].rope is not None


def test_the_width_of_shared_experts():
    keys = EXPERTS | {"expert_shared_count": 3}
    shared = {"expert_shared_feed_forward_length": 20}
    for name, more, width in (
        ("bailingmoe", {}, 72),
        ("bailingmoe2", {}, 72),
        ("bailingmoe2", shared, 60),
        ("glm4moe", {}, 72),
        ("ernie4_5-moe", shared, 20),
        ("granitemoe", shared, 20),
        ("dots1", {}, 72),
        ("hunyuan-moe", {}, 40),
        ("hunyuan-moe", shared, 20),
    ):
        assert config(name, **keys | more).layers[0].feed_forward.shared_hidden == width


@pytest.mark.parametrize(
    ("name", "scoring", "renormalized"),
    [
        ("glm4moe", "sigmoid", False),
        ("minimax-m2", "sigmoid", True),
        ("lfm2moe", "sigmoid", True),
        ("bailingmoe2", "softmax", False),
        ("llama4", "sigmoid", False),
        ("granitemoe", "softmax", True),
        ("ernie4_5-moe", "softmax", True),
        ("dots1", "sigmoid", False),
        ("hunyuan-moe", "softmax", True),
        ("olmoe", "softmax", False),
    ],
)
def test_routers(name, scoring, renormalized):
    routing = config(name, **EXPERTS).layers[0].feed_forward.routing
    assert (routing.scoring, routing.renormalize, routing.scale) == (scoring, renormalized, 1.0)


@pytest.mark.parametrize("name", ["glm4moe", "bailingmoe2", "dots1"])
def test_routers_that_files_describe(name):
    keys = {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 2.5}
    routing = config(name, **EXPERTS | keys).layers[0].feed_forward.routing
    assert (routing.scoring, routing.renormalize, routing.scale) == ("sigmoid", True, 2.5)


def test_norms_of_heads_that_a_file_may_have():
    assert mixers("glm4moe", **EXPERTS)[0].qk_norm is None
    assert mixers("glm4moe", ["attn_q_norm.weight"], **EXPERTS)[0].qk_norm == "head"


@pytest.mark.parametrize(
    ("name", "sections", "width", "still"),
    [
        ("qwen2vl", (16, 24, 24, 0), 128, ()),
        ("qwen2vl", (2, 3, 3, 4), 24, (8, 9, 10, 11)),
        ("qwen2vl", (2, 1, 1, 2), 16, (4, 5)),  # the sections come again after 6 pairs
        ("qwen3vl", (24, 20, 20, 0), 128, (61, 62)),
        ("qwen3vl", (12, 10, 10, 0), 64, (31,)),
        ("qwen3vlmoe", (3, 3, 2, 0), 16, ()),
        ("glm4moe", (2, 3, 3, 0), 16, ()),
        ("glm4", (2, 2, 2, 2), 16, (6, 7)),
    ],
)
def test_sections_of_positions(name, sections, width, still):
    """Worked out by hand from the rule of ggml: which pairs take the fourth position."""
    keys = {"attention.key_length": 128, "attention.value_length": 128}
    keys |= {"rope.dimension_count": width, "rope.dimension_sections": ints(*sections)}
    rope = mixers(name, **EXPERTS | keys)[0].rope
    factors = rope.factors or (1.0,) * (width // 2)
    assert not rope.interleaved
    assert tuple(i for i, factor in enumerate(factors) if factor == math.inf) == still
    assert {factor for factor in factors if factor != math.inf} == {1.0}


@pytest.mark.parametrize("sections", [None, ints(0, 0, 0, 0), ints(0, 4, 4, 0)])
def test_glm_without_sections(sections):
    keys = {"rope.dimension_sections": sections}
    assert mixers("glm4", **keys)[0].rope.interleaved
    assert not mixers("glm4moe", **EXPERTS | keys)[0].rope.interleaved


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (None, "4 integers that are not all 0"),
        (ints(0, 0, 0, 0), "4 integers that are not all 0"),
        (ints(4, -1, 4, 0), "integers from 0"),
        (ints(1, 1, 1, 1, 1), "an array of 5"),
        (np.float32([4, 4, 4, 0]), "integers from 0"),
        ("4", "has '4'"),
    ],
)
def test_sections_that_are_wrong(sections, message):
    with pytest.raises(GGUFError, match=f"qwen2vl.rope.dimension_sections must be .*{message}"):
        config("qwen2vl", **{"rope.dimension_sections": sections})


@pytest.mark.parametrize(
    ("opened", "factors"), [(22, (2.0,) * 4), (23, (2.0,) * 4), (24, (9.0,) * 4)]
)
def test_phi3_takes_the_factors_of_its_context(opened, factors):
    keys = {"rope.scaling.original_context_length": 23, "attention.sliding_window": 5}
    file = sample(
        "phi3",
        {
            "rope_factors_short.weight": np.full(4, 2, "<f4"),
            "rope_factors_long.weight": np.full(4, 9, "<f4"),
        },
        **keys,
    )
    made, unused = read_config(file, opened)
    assert made.layers[0].mixer.rope.factors == factors
    assert made.layers[0].mixer.window is None
    assert list(unused) == ["phi3.attention.sliding_window"] and "unknown" not in unused.values()


def test_the_rotary_base_of_hunyuan():
    keys = {"rope.freq_base": 100.0, "rope.dimension_count": 4}
    plain = mixers("hunyuan-dense", **keys)[0]
    assert (plain.rope.base, plain.qk_norm, plain.rotates_first) == (100.0, "head", True)
    raised = mixers("hunyuan-dense", **keys | {"rope.scaling.alpha": 8.0})[0].rope
    assert raised.base == pytest.approx(100 * 8 ** (8 / 6))  # by the width of a head, which is 8
    assert raised.width == 4


def test_sections_of_hunyuan():
    keys = {"rope.dimension_sections": ints(1, 1, 1, 1)}
    assert mixers("hunyuan_vl", **keys)[0].rope.factors == (1.0, 1.0, 1.0, math.inf)


def test_one_expert_without_a_router_is_dense():
    """Files of Hunyuan have it."""
    one = {"expert_count": 1, "expert_used_count": 1}
    made, unused = read_config(sample("hunyuan-dense", **one))
    assert type(made.layers[0].feed_forward).__name__ == "Gated"
    assert "unknown" not in unused.values()
    with_router = config("qwen3moe", ["ffn_gate_inp.weight"], **EXPERTS | one)
    assert with_router.layers[0].feed_forward.experts == 1


def test_layers_of_cohere2():
    made = mixers("cohere2", block_count=5)
    assert [one.window for one in made] == [16, 16, 16, None, 16]
    assert [one.rope is not None for one in made] == [True, True, True, False, True]
    assert config("cohere2", logit_scale=0.25).logit_scale == 0.25


@pytest.mark.parametrize(
    ("name", "present", "parallel"),
    [
        ("stablelm", ["ffn_norm.weight"], False),
        ("stablelm", [], True),
        ("command-r", [], True),
        ("cohere2", [], True),
        ("starcoder2", [], False),
    ],
)
def test_attention_and_feed_forward_side_by_side(name, present, parallel):
    made = config(name, present)
    (norms,) = {layer.norms.names for layer in made.layers}
    assert norms == (("attn_norm",) if parallel else ("attn_norm", "ffn_norm"))
    assert {layer.parallel for layer in made.layers} == {parallel}
    assert made.norm_kind == made.layers[0].norms.kind == "layer"


@pytest.mark.parametrize("name", ["stablelm", "command-r"])
def test_large_models_have_a_norm_for_each_head(name):
    (mixer,) = set(mixers(name, ["attn_q_norm.weight"]))
    assert mixer.qk_norm == "each"


@pytest.mark.parametrize(("name", "activation"), [("arcee", "relu2"), ("starcoder2", "gelu")])
def test_feed_forwards_without_gates(name, activation):
    feed = config(name).layers[0].feed_forward
    assert (feed.gated, feed.activation.name) == (False, activation)


def test_the_count_of_shared_experts_is_a_known_key():
    """Also where a tensor shows their width."""
    for name in ("glm4moe", "ernie4_5-moe", "dots1"):
        file = sample(name, **EXPERTS | {"expert_shared_count": 1})
        file.tensors["blk.0.ffn_down_shexp.weight"] = SimpleNamespace(shape=(48, 24))
        made, unused = read_config(file)
        assert made.layers[0].feed_forward.shared_hidden == 24
        assert not unused
