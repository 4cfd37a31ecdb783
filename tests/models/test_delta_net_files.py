"""Files of Qwen3-Next and Qwen 3.5 that no reference file shows: other tensors, other keys."""

import warnings

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError, open_gguf, write_gguf
from rocmforge_jax.models import DeltaRule, load_decoder, read_config

pytestmark = pytest.mark.core

#: 2 key heads and 4 value heads of 8 and 6; 4 query heads of 10 and 2 KV heads; 4 experts.
K, N, H, W = 2, 4, 8, 6
D, HEADS, KV_HEADS, HEAD, EXPERTS, HIDDEN, SHARED = 32, 4, 2, 10, 4, 16, 24
KEYS = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": D,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.dimension_count": 4,
    "expert_count": EXPERTS,
    "expert_used_count": 2,
    "expert_feed_forward_length": HIDDEN,
    "expert_shared_feed_forward_length": SHARED,
    "ssm.conv_kernel": 4,
    "ssm.state_size": H,
    "ssm.group_count": K,
    "ssm.time_step_rank": N,
    "ssm.inner_size": N * W,
    "full_attention_interval": 2,
}
QKV = 2 * K * H + N * W
OF_EVERY_LAYER = {
    "attn_norm.weight": (D,),
    "post_attention_norm.weight": (D,),
    "ffn_gate_inp.weight": (EXPERTS, D),
    "ffn_gate_exps.weight": (EXPERTS, HIDDEN, D),
    "ffn_up_exps.weight": (EXPERTS, HIDDEN, D),
    "ffn_down_exps.weight": (EXPERTS, D, HIDDEN),
    "ffn_gate_inp_shexp.weight": (D,),
    "ffn_gate_shexp.weight": (SHARED, D),
    "ffn_up_shexp.weight": (SHARED, D),
    "ffn_down_shexp.weight": (D, SHARED),
}
SHAPES = {
    "token_embd.weight": (48, D),
    "output_norm.weight": (D,),
    **{f"blk.{i}.{name}": shape for i in range(2) for name, shape in OF_EVERY_LAYER.items()},
    "blk.0.attn_qkv.weight": (QKV, D),
    "blk.0.attn_gate.weight": (N * W, D),
    "blk.0.ssm_ba.weight": (2 * N, D),
    "blk.0.ssm_conv1d.weight": (QKV, 4),
    "blk.0.ssm_dt.bias": (N,),
    "blk.0.ssm_a": (N,),
    "blk.0.ssm_norm.weight": (W,),
    "blk.0.ssm_out.weight": (D, N * W),
    "blk.1.attn_q.weight": (2 * HEADS * HEAD, D),
    "blk.1.attn_k.weight": (KV_HEADS * HEAD, D),
    "blk.1.attn_v.weight": (KV_HEADS * HEAD, D),
    "blk.1.attn_output.weight": (D, HEADS * HEAD),
    "blk.1.attn_q_norm.weight": (HEAD,),
    "blk.1.attn_k_norm.weight": (HEAD,),
}


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    made = {name: random.normal(0, 0.3, shape) for name, shape in SHAPES.items()}
    made["blk.0.ssm_a"] = -np.exp(made["blk.0.ssm_a"])
    return made


@pytest.fixture
def file(weights, tmp_path):
    """file(architecture, keys, tensors): one of random weights, changed; None leaves one out."""

    def file(architecture="qwen3next", keys=(), tensors=()):
        keys = KEYS | dict(keys)
        metadata = {f"{architecture}.{key}": v for key, v in keys.items() if v is not None}
        written = {
            name: ("F32", np.asarray(array, np.float32))
            for name, array in (weights | dict(tensors)).items()
            if array is not None
        }
        write_gguf(
            tmp_path / "file.gguf", {"general.architecture": architecture} | metadata, written
        )
        return open_gguf(tmp_path / "file.gguf")

    return file


@pytest.fixture
def same(file, logits):
    """same(tensors): asserts that a file with these changes has the logits of one without."""

    def same(**changes):
        tokens = np.arange(40, dtype=np.int32)[None] % 48
        expected, found = (logits(load_decoder(file(**c)), tokens) for c in ({}, changes))
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
        return expected

    return same


def by_key_heads(array):
    return array.reshape(K, -1, D)


def test_ssm_in_of_older_files(weights, same):
    """It holds the query, the key, the values and the gates of one key head after the other."""
    qkv, gate = weights["blk.0.attn_qkv.weight"], weights["blk.0.attn_gate.weight"]
    parts = [*np.split(qkv, [K * H, 2 * K * H]), gate]
    fused = np.concatenate([by_key_heads(part) for part in parts], axis=1).reshape(-1, D)
    without = {"blk.0.attn_qkv.weight": None, "blk.0.attn_gate.weight": None}
    same(tensors=without | {"blk.0.ssm_in.weight": fused})


def test_a_fused_attn_qkv_with_gates(weights, same):
    names = [f"blk.1.attn_{part}.weight" for part in "qkv"]
    fused = np.concatenate([weights[name] for name in names])
    same(tensors=dict.fromkeys(names) | {"blk.1.attn_qkv.weight": fused})


@pytest.mark.parametrize("interval", [None, 0, 3])
def test_recurrent_layers_are_listed(interval, same):
    """The list decides, whatever the interval."""
    layers = {"attention.recurrent_layers": [True, False], "full_attention_interval": interval}
    same(keys=layers)


def kinds(gguf):
    config, unused = read_config(gguf)
    assert "unknown" not in unused.values()
    return [isinstance(layer.mixer, DeltaRule) for layer in config.layers]


def test_every_fourth_layer_has_attention_where_the_file_does_not_say(file):
    keys = {"block_count": 10, "full_attention_interval": None}
    assert kinds(file(keys=keys)) == ([True] * 3 + [False]) * 2 + [True] * 2
    assert kinds(file(keys=keys | {"nextn_predict_layers": 3})) == [True] * 3 + [False] + [True] * 3
    assert kinds(file(keys=keys | {"attention.recurrent_layers": True})) == [True] * 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ssm.inner_size": 26}, "ssm.inner_size is 26, not a multiple of 4 value heads"),
        ({"ssm.group_count": 3}, "4 value heads and 3 key heads"),
        ({"ssm.conv_kernel": 0}, "ssm.conv_kernel must be .* the file has 0"),
        ({"ssm.state_size": None}, "ssm.state_size must be .* no such key"),
        ({"full_attention_interval": 0}, "full_attention_interval must be .* the file has 0"),
        (
            {"attention.recurrent_layers": [True]},
            "recurrent_layers must be a bool, or an array .* 2 blocks, .* an array of 1",
        ),
        ({"attention.recurrent_layers": [0.5, 1.0]}, "recurrent_layers .* not of float32"),
        ({"attention.recurrent_layers": 2}, "recurrent_layers must be a bool.* the file has 2"),
        ({"expert_count": None}, "expert_count must be .* no such key"),
    ],
)
def test_keys_that_are_wrong(file, keys, message):
    with pytest.raises(GGUFError, match=message):
        read_config(file(keys=keys))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([1] * 5, r"dimension_sections must be an array of up to 4 integers.* an array of 5"),
        ([1, 1, -1, 0], "dimension_sections must be an array of up to 4 integers from 0"),
        ([0, 0, 0, 0], r"dimension_sections is \[0, 0, 0, 0\]: 2 of 2 pairs"),
        ([1, 0, 0, 1], r"dimension_sections is \[1, 0, 0, 1\]: 1 of 2 pairs"),
    ],
)
def test_sections_that_do_not_rotate_text(file, sections, message):
    with pytest.raises(GGUFError, match=message):
        read_config(file("qwen35moe", {"rope.dimension_sections": sections}))


def test_sections_change_nothing_for_text(file):
    plain = read_config(file("qwen35moe"))
    assert read_config(file("qwen35moe", {"rope.dimension_sections": [1, 1, 1, 0]})) == plain


def test_what_an_architecture_has_no_tensor_for_is_refused(file):
    """Qwen 3.5 has no fused tensors: ssm_ba would be in another order."""
    with pytest.raises(GGUFError, match="ssm_beta.weight .* is missing.*ssm_ba.weight is not part"):
        load_decoder(file("qwen35moe"))
    with pytest.raises(GGUFError, match=r"ssm_conv1d.weight has shape \[56, 4\], expected \[56, 5"):
        load_decoder(file(keys={"ssm.conv_kernel": 5}))


def test_a_block_for_multi_token_prediction_is_skipped_and_said_once(whole_reference):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_decoder(open_gguf(whole_reference / "families" / "qwen35-mtp.Q4_0.gguf"))
    (only,) = caught
    assert "the 15 tensors of 1 blocks for multi-token prediction" in str(only.message)


@pytest.mark.parametrize("options", [dict(fused_input=True), dict(fused_shares=True)])
def test_fused_tensors_are_in_groups(options):
    with pytest.raises(ValueError, match="ssm_in and ssm_ba .* grouped"):
        DeltaRule(2, 4, 8, 8, 4, **options)
