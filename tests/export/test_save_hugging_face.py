"""Folders for transformers: names, orders, settings, tokenizer and refusals.

`make test-hf` compares logits with transformers.
"""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

import rocmforge_jax as rf
from rocmforge_jax.export.hugging_face import tensors
from rocmforge_jax.export.hugging_face.rope import rope_settings
from rocmforge_jax.models import Decoder
from rocmforge_jax.nn import RopeConfig
from rocmforge_jax.text.tokenizer_json import tokenizer_json
from tests.export import fresh


def read(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def value(variable):
    return np.asarray(variable.get_value())


@pytest.fixture(scope="module")
def demo():
    return rf.load("demo", progress=False)


def test_names_and_orders_of_llama(tmp_path):
    decoder = fresh.decoder("llama, untied, with biases")
    rf.save(decoder, tmp_path / "model")
    found = read(tmp_path / "model" / "model.safetensors")
    layer, of_layer = decoder.blk[2], "model.layers.2"
    np.testing.assert_array_equal(found["lm_head.weight"], value(decoder.output.kernel).T)
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"], value(decoder.token_embd.embedding)
    )
    np.testing.assert_array_equal(
        found[f"{of_layer}.post_attention_layernorm.weight"], value(layer.ffn_norm.scale)
    )
    np.testing.assert_array_equal(
        found[f"{of_layer}.mlp.down_proj.weight"], value(layer.ffn_down.kernel).T
    )
    np.testing.assert_array_equal(
        found[f"{of_layer}.self_attn.v_proj.bias"], value(layer.attn_v.bias)
    )
    # Row i of a head's first half and row i of its second one are neighbours in a GGUF file.
    half = fresh.HEAD // 2
    order = [
        head * fresh.HEAD + 2 * i + second
        for head in range(6)
        for second in (0, 1)
        for i in range(half)
    ]
    for name, count in (("q", 6), ("k", 2)):
        linear, rows = getattr(layer, f"attn_{name}"), order[: count * fresh.HEAD]
        theirs = f"{of_layer}.self_attn.{name}_proj"
        np.testing.assert_array_equal(found[f"{theirs}.weight"], value(linear.kernel).T[rows])
        np.testing.assert_array_equal(found[f"{theirs}.bias"], value(linear.bias)[rows])


def test_norms_of_gemma_are_less_by_one(tmp_path):
    decoder = fresh.decoder("gemma3")
    rf.save(decoder, tmp_path / "weights.safetensors")
    found = read(tmp_path / "weights.safetensors")
    for name, norm in (
        ("model.norm", decoder.output_norm),
        ("model.layers.1.pre_feedforward_layernorm", decoder.blk[1].ffn_norm),
        ("model.layers.1.self_attn.q_norm", decoder.blk[1].attn_q_norm),
    ):
        np.testing.assert_array_equal(found[f"{name}.weight"], value(norm.scale) - np.float32(1))
    np.testing.assert_array_equal(
        found["model.layers.3.self_attn.q_proj.weight"], value(decoder.blk[3].attn_q.kernel).T
    )
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_settings(tmp_path):
    rf.save(fresh.decoder("gemma3"), tmp_path / "model", types="bf16")
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    expected = {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": 42,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 24,
        "query_pre_attn_scalar": 8,
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["layer_types"] == ["sliding_attention"] * 2 + ["full_attention"] + [
        "sliding_attention"
    ]
    stored = read(tmp_path / "model" / "model.safetensors")["model.norm.weight"]
    assert stored.dtype == ml_dtypes.bfloat16


def test_large_models_are_cut_into_files(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MOST_BYTES", 3_000_000)
    rf.save(demo, tmp_path / "model")
    index = json.loads((tmp_path / "model" / tensors.INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found = {file: read(tmp_path / "model" / file) for file in files}
    for file, arrays in found.items():
        assert sum(array.nbytes for array in arrays.values()) <= 3_000_000
        assert {name for name, where in index["weight_map"].items() if where == file} == set(arrays)
    total = sum(array.nbytes for arrays in found.values() for array in arrays.values())
    assert index["metadata"]["total_size"] == total


TEXTS = ("ROMEO: what light? 12,345 naïve\n\n  x", " Hello, 日本!", "", "<s> a </s>")


def test_the_tokenizer_of_pieces_gives_the_same_ids(reference):
    file = rf.open_gguf(reference / "tokenizers" / "ggml-vocab-llama-spm.gguf")
    ours, theirs = rf.load_tokenizer(file.path), tokenizer_json(file.metadata)
    for text in TEXTS[:3]:
        assert theirs.encode(text).ids == ours.encode(text, add_special=True)
    assert theirs.encode(TEXTS[3]).ids[1:] != ours.encode(TEXTS[3])
    assert theirs.encode("<s> a", add_special_tokens=False).ids[0] == ours.bos_id


def test_the_tokenizer_of_bytes_gives_the_same_ids(demo, tmp_path):
    theirs = tokenizer_json(demo.metadata)
    for text in TEXTS[:3]:
        ids = demo.tokenizer.encode(text, add_special=True)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids) == demo.tokenizer.decode(ids, skip_special=True)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_other_tokenizers_are_refused(kind):
    with pytest.raises(ValueError, match=f"'{kind}'.*gpt2 and llama"):
        tokenizer_json({"tokenizer.ggml.model": kind})


def test_a_tokenizer_that_cannot_be_written_is_warned_about(demo, tmp_path):
    lm = rf.LanguageModel(demo.model, demo.tokenizer)
    with pytest.warns(UserWarning, match=r"no tokenizer\.json is written"):
        rf.save(lm, tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }


def test_factors_of_llama_3():
    """The formula of Llama 3.1, one frequency after the other."""
    factors = []
    for frequency in 5e5 ** (-np.arange(0, 64, 2) / 64):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    found = rope_settings(RopeConfig(64, 5e5, True, factors=tuple(factors)))
    assert found["rope_scaling"]["rope_type"] == "llama3" and found["rope_scaling"]["factor"] == 32
    with pytest.raises(ValueError, match="up to 40 in 32 pairs"):
        rope_settings(RopeConfig(64, 5e5, True, factors=(40.0, *factors[1:])))


def changed(decoder, **changes):
    """A decoder of another configuration, without weights of its own."""
    return Decoder(dataclasses.replace(decoder.config, **changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", dict(architecture="qwen2moe"), "qwen2moe cannot .* llama, qwen2, qwen3, gemma"),
        ("llama", dict(logit_cap=7.0), r"LlamaForCausalLM .* logit_cap is 7\.0, .* None"),
        ("qwen2", dict(embedding_scale=2.0), "embedding_scale is 2, .* as 1"),
        ("gemma2", dict(embedding_scale=1.0), r"embedding_scale is 1, .* as 6\.48"),
    ],
)
def test_what_transformers_cannot_say_is_refused(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        rf.save(changed(fresh.decoder(name), **changes), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_types_of_blocks_are_refused(demo, tmp_path):
    with pytest.raises(ValueError, match="F32, F16, BF16: got Q8_0"):
        rf.save(demo, tmp_path / "model", types="Q8_0")


def test_metadata_are_refused(demo, tmp_path):
    with pytest.raises(ValueError, match="metadata .*model"):
        rf.save(demo, tmp_path / "model", metadata={"general.name": "a"})


def test_a_folder_that_is_not_empty_is_refused(demo, tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(FileExistsError, match="holds 1 files"):
        rf.save(demo, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes"]


def test_without_safetensors_the_remedy_is_named(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"rocmforge-jax\[export\]"):
        rf.save(demo, tmp_path / "weights.safetensors")
