"""What a file means that leaves a key out, or gives it a value beside the usual, as in llama.cpp.

Source: load_hparams in src/llama-model.cpp, and the families in src/models.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.models import load_decoder, read_config

pytestmark = pytest.mark.core

TOKENS = np.arange(20, dtype=np.int32)[None]


@pytest.fixture
def config(small_file):
    """config(name="llama", tensors, **keys): what is read from the small file of an architecture.

    None leaves a key out. Two underscores are a dot.
    """

    def config(name="llama", tensors=(), **keys):
        own = {
            f"{name}.{key.removeprefix('llama.')}": value
            for key, value in small_file().metadata.items()
            if key.startswith("llama.")
        }
        own |= {f"{name}.{key.replace('__', '.')}": value for key, value in keys.items()}
        file = small_file(keys=own | {"general.architecture": name}, tensors=tensors)
        return read_config(file)[0]

    return config


def zeros(*shape):
    return "F32", np.zeros(shape, np.float32)


def experts(hidden, count=4, shared=0):
    """The tensors of a mixture in place of the feed-forward, for a width of 32."""
    tensors = {f"blk.0.ffn_{part}.weight": None for part in ("gate", "up", "down")} | {
        "blk.0.ffn_gate_inp.weight": zeros(count, 32),
        "blk.0.ffn_gate_exps.weight": zeros(count, hidden, 32),
        "blk.0.ffn_up_exps.weight": zeros(count, hidden, 32),
        "blk.0.ffn_down_exps.weight": zeros(count, 32, hidden),
    }
    if shared:
        tensors |= {
            "blk.0.ffn_gate_inp_shexp.weight": zeros(32),
            "blk.0.ffn_gate_shexp.weight": zeros(shared, 32),
            "blk.0.ffn_up_shexp.weight": zeros(shared, 32),
            "blk.0.ffn_down_shexp.weight": zeros(32, shared),
        }
    return tensors


@pytest.mark.parametrize("value", [np.uint8(0), [True, False], "yes"])
def test_a_causal_mask_is_there_or_not(config, value):
    with pytest.raises(GGUFError, match=r"small.gguf: qwen2.attention.causal .* bool"):
        config("qwen2", attention__causal=value)
    assert config("qwen2", attention__causal=True).causal and config("qwen2").causal
    made = config("qwen2", attention__causal=False)
    assert not made.causal and not made.layers[0].mixer.causal and made.has_head


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("gemma3", dict(attention__sliding_window=16), "layer 0 has a window"),
        ("lfm2", dict(attention__head_count_kv=[0], shortconv__l_cache=3), "ShortConvolution"),
    ],
)
def test_parts_that_only_look_back_need_a_causal_mask(config, architecture, keys, message):
    keys |= dict(attention__causal=False)
    with pytest.raises(GGUFError, match=rf"{architecture}.attention.causal is False.*{message}"):
        config(architecture, **keys)


def test_keys_of_embeddings_and_classifiers_change_no_logits(small_file):
    keys = {
        "llama.attention.causal": True,
        "llama.pooling_type": 3,
        "llama.classifier.output_labels": ["yes", "no"],
        "llama.embedding_length_out": 16,
        "llama.rope.scaling.alpha": np.float32(0),
    }
    load_decoder(small_file(keys=keys), strict=True)


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({"factor": 4.0}, 4.0),
        ({"scale_linear": 4.0}, 4.0),
        ({"factor": 4.0, "scale_linear": 2.0}, 4.0),
        ({"factor": 0.0, "scale_linear": 2.0}, 1.0),
        ({"factor": 0.0}, 1.0),
        ({"scale_linear": 0.0}, 1.0),
        ({"factor": 4.0, "type": "none"}, 1.0),
        ({"factor": 4.0, "type": "longrope"}, 4.0),
        ({}, 1.0),
    ],
    ids=str,
)
def test_rope_scaling(config, keys, scale):
    names = {"scale_linear": "rope__scale_linear"}
    given = {names.get(key, f"rope__scaling__{key}"): value for key, value in keys.items()}
    assert config(**given).layers[0].mixer.rope.scale == scale


def test_an_original_context_of_0_is_the_trained_one(config):
    keys = dict(rope__scaling__type="yarn", rope__scaling__factor=4.0)
    rope = config(rope__scaling__original_context_length=0, **keys).layers[0].mixer.rope
    assert rope.yarn.original_context == 128


def test_kv_heads_and_the_width_of_heads_follow_from_others(config):
    mixer = config(attention__head_count_kv=None).layers[0].mixer
    assert (mixer.kv_heads, mixer.head_width, mixer.rope.width) == (4, 8, 8)
    assert config(attention__key_length=16).layers[0].mixer.rope.width == 16


def test_groups_of_experts_count_in_every_architecture(config):
    keys = dict(expert_count=8, expert_used_count=2, expert_group_count=4)
    found = config(tensors=experts(40, 8), expert_group_used_count=3, **keys)
    routing = found.layers[0].feed_forward.routing
    assert (routing.groups, routing.groups_used) == (4, 3)
    with pytest.raises(GGUFError, match="5 groups of experts are used, of 4"):
        config(tensors=experts(40, 8), expert_group_used_count=5, **keys)
    with pytest.raises(GGUFError, match="8 experts in 3 groups"):
        config(
            tensors=experts(40, 8),
            **keys | dict(expert_group_count=3, expert_group_used_count=2),
        )
    for none in (0, 1):
        routing = (
            config(
                tensors=experts(40, 8),
                **keys | dict(expert_group_count=none, expert_group_used_count=none),
            )
            .layers[0]
            .feed_forward.routing
        )
        assert (routing.groups, routing.groups_used) == (1, 1)


@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe"])
def test_sizes_of_experts_without_a_key_are_those_of_the_tensors(config, name):
    """llama.cpp divides feed_forward_length by the experts of a token; here 88 by 2."""
    keys = dict(expert_count=4, expert_used_count=2, feed_forward_length=88)
    assert config(name, experts(44), **keys).layers[0].feed_forward.hidden == 44
    assert (
        config(name, experts(44), **keys | dict(feed_forward_length=None))
        .layers[0]
        .feed_forward.hidden
        == 44
    )


def test_a_shared_expert_without_a_key_is_that_of_the_tensors(config):
    """llama.cpp takes feed_forward_length."""
    keys = dict(expert_count=4, expert_used_count=2, feed_forward_length=72)
    for given in ({}, dict(expert_shared_feed_forward_length=0)):
        mixture = config("qwen2moe", experts(36, shared=72), **keys | given).layers[0].feed_forward
        assert (mixture.hidden, mixture.shared_hidden, mixture.shared_gate) == (36, 72, True)
    for given in (dict(expert_shared_feed_forward_length=24), dict(expert_shared_count=2)):
        mixture = config("qwen2moe", experts(36), **keys | given).layers[0].feed_forward
        assert mixture.shared_hidden == {24: 24}.get(next(iter(given.values())), 72)


def test_hidden_units_are_never_negative(config):
    keys = dict(expert_count=4, expert_used_count=2, feed_forward_length=np.int32(-2))
    with pytest.raises(GGUFError, match="feed_forward_length must be an integer from 0 .* -2$"):
        config("qwen3moe", experts(44), **keys)


def test_without_experts_the_hidden_units_are_required(config):
    with pytest.raises(GGUFError, match="llama.feed_forward_length .* no such key"):
        config(feed_forward_length=None)


@pytest.mark.parametrize(
    ("sections", "interleaved"),
    [
        (None, True),
        ([0, 0, 0, 0], True),
        ([2, 0, 0, 0], True),
        ([1, 2, 1, 0], False),
        ([1, 3], False),
    ],
)
def test_glm4_for_pictures_rotates_other_pairs(config, sections, interleaved):
    """llama_model_rope_type: MROPE, whose pairs are NEOX's, where the first two sections are."""
    given = None if sections is None else np.array(sections, np.int32)
    found = config("glm4", rope__dimension_sections=given)
    assert found.layers[0].mixer.rope.interleaved == interleaved


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (np.array([1, -1, 1, 0], np.int32), "array of up to 4 integers from 0"),
        (np.array([1.0, 2.0], np.float32), "array of up to 4 integers from 0, .* array of 2"),
        (np.array([1] * 5, np.int32), "array of up to 4 integers from 0, .* array of 5"),
        (4, "array of up to 4 integers from 0, the file has 4"),
    ],
)
def test_sections_that_are_none(config, sections, message):
    with pytest.raises(GGUFError, match=message):
        config("glm4", rope__dimension_sections=sections)


@pytest.mark.parametrize("name", ["key_length_swa", "value_length_swa", "value_length"])
def test_heads_of_two_widths_are_refused(config, name):
    windows = dict(attention__sliding_window=16)
    config("gemma3", **windows, **{f"attention__{name}": 8})
    with pytest.raises(GGUFError, match=f"gemma3.attention.{name}: keys are 8 wide and .* 4: not"):
        config("gemma3", **windows, **{f"attention__{name}": 4})


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_layers_with_a_window_may_rotate_fewer_elements(config, name):
    keys = dict(attention__sliding_window=16, block_count=2, rope__dimension_count_swa=4)
    keys |= dict(attention__sliding_window_pattern=2)
    windowed, full = config(name, **keys).layers
    assert (windowed.mixer.window, windowed.mixer.rope.width) == (16, 4)
    assert (full.mixer.window, full.mixer.rope.width) == (None, 8)


def test_rows_of_the_embedding_count_whatever_the_key_says(small_file):
    with pytest.warns(UserWarning, match="llama.vocab_size is 50, token_embd.weight has 48 rows"):
        decoder = load_decoder(small_file(keys={"llama.vocab_size": 50}))
    assert decoder.config.vocabulary == 48


def test_an_epsilon_of_0(small_file, logits):
    """Norms divide by the root mean square alone: x and 3 x are one to the first norm."""
    keys = {"llama.attention.layer_norm_rms_epsilon": 0.0}
    found = logits(load_decoder(small_file(keys=keys)), TOKENS)
    tiny = {"llama.attention.layer_norm_rms_epsilon": 1e-30}
    expected = logits(load_decoder(small_file(keys=tiny, name="tiny.gguf")), TOKENS)
    np.testing.assert_array_equal(found, expected)


def test_all_missing_keys_are_listed_at_once(small_file):
    left_out = (
        "block_count",
        "context_length",
        "embedding_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "feed_forward_length",
    )
    gguf = small_file(keys={f"llama.{key}": None for key in left_out})
    with pytest.raises(GGUFError) as caught:
        read_config(gguf)
    message = str(caught.value)
    assert message.count("the file has no such key") == len(left_out)
    assert message.count(str(gguf.path)) == 1
    assert all(f"llama.{key} must be" in message for key in left_out)


def test_a_configuration_is_read_once(small_file, monkeypatch):
    """By `load` as well, which plans the memory with it."""
    from rocmforge_jax import loading
    from rocmforge_jax.models import ARCHITECTURES, Architecture

    read, reads = ARCHITECTURES["llama"].read, []

    def counted(keys):
        reads.append(keys)
        return read(keys)

    monkeypatch.setitem(ARCHITECTURES, "llama", Architecture("llama", counted))
    monkeypatch.setattr(loading, "_tokenizer_and_template", lambda *_: ())
    monkeypatch.setattr(loading, "LanguageModel", lambda *_, **__: SimpleNamespace())
    loading.load(small_file().path, progress=False)
    assert len(reads) == 1
