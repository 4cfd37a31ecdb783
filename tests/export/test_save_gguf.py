"""A saved GGUF file holds the same bits, keys and tokenizer, whatever family it came from."""

import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax import formats
from rocmforge_jax.export import gguf_file
from rocmforge_jax.export.checked import differences
from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.locate import DEMO
from rocmforge_jax.models import (
    Attention,
    Decoder,
    DecoderConfig,
    Gated,
    Source,
    load_decoder,
    tensor_name,
)
from rocmforge_jax.models.requantize import type_of
from rocmforge_jax.nn import RopeConfig
from tests.export import fresh
from tests.models.synthetic_cases import CASES

CASE = {case.name: case for case in CASES}


def variables(decoder):
    return {tensor_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(decoder))}


def assert_equal(decoder, expected):
    """Configurations, types and all bits are equal, so logits are."""
    assert decoder.config == expected.config
    found, wanted = variables(decoder), variables(expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        pair = [jax.tree.flatten(one[name].get_value()) for one in (found, wanted)]
        assert pair[0][1] == pair[1][1], name
        for array, other in zip(pair[0][0], pair[1][0]):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(np.asarray(array), np.asarray(other), name)


def load(gguf, **options):
    return load_decoder(gguf, dtype=jnp.float32, backend="xla", activations="float", **options)


def through_file(gguf, path, decoder):
    """Saves the decoder of a file, and opens what was saved."""
    gguf_file.write(decoder, path, source=Source.of(gguf), types=None, metadata={})
    return open_gguf(path)


@pytest.mark.parametrize("name", ["qwen2.Q4_K_M", "llama-gqa.IQ2_XS"])
def test_a_file_comes_back_as_it_was(name, reference, tmp_path):
    old = open_gguf(reference / "models" / f"{name}.gguf")
    decoder = load(old)
    new = through_file(old, tmp_path / "new.gguf", decoder)
    assert_equal(load(new), decoder)
    assert list(new.tensors) and new.tensors.keys() == old.tensors.keys()
    for tensor, other in zip(map(new.tensors.get, old.tensors), old.tensors.values()):
        assert (tensor.shape, tensor.format) == (other.shape, other.format)
        np.testing.assert_array_equal(tensor.data, other.data)
    assert {key: new.metadata.describe(key) for key in new.metadata} == {
        key: old.metadata.describe(key) for key in old.metadata
    }
    for key in old.metadata:
        np.testing.assert_array_equal(new.metadata[key], old.metadata[key], key)


@pytest.mark.parametrize(
    "name",
    [
        "deepseek2-legacy",
        "falcon-40b",
        "plamo3",
        "openelm",
        "mamba",
        "apertus",
        "laguna-heads",
        "command-r-plus",
        "starcoder",
    ],
)
def test_families_come_back(name, tmp_path):
    """Latents that share a tensor, names without an end, keys per layer, states."""
    old = CASE[name].write(tmp_path / "old.gguf")
    decoder = load(old)
    new = through_file(old, tmp_path / "new.gguf", decoder)
    assert_equal(load(new), decoder)


@pytest.mark.parametrize("name", ["hy_v3", "phimoe", "plamo3", "plm"])
def test_a_decoder_alone_gets_the_names_that_llama_cpp_reads(name, tmp_path):
    """Names without a last part, divisors for two context lengths, keys and values in one."""
    (case,) = (case for case in CASES if case.name == name)
    gguf = case.write(tmp_path / "before.gguf")
    decoder = load_decoder(gguf, dtype=jnp.float32)
    rf.save(decoder, tmp_path / "after.gguf", metadata=dict(gguf.metadata), progress=False)
    assert open_gguf(tmp_path / "after.gguf").tensors.keys() == gguf.tensors.keys()


def test_biases_that_are_joined_are_parts_again(tmp_path):
    case = CASE["qwen"]
    old = case.write(tmp_path / "whole.gguf")
    bias = old.tensors["blk.0.attn_qkv.bias"].data.view(np.float32)
    parts = {
        f"blk.{i}.attn_{part}.bias": ("F32", (i + 1) * bias[j * 48 : (j + 1) * 48])
        for i in range(2)
        for j, part in enumerate("qkv")
    }
    without = {f"blk.{i}.attn_qkv.bias": None for i in range(2)}
    old = case.write(tmp_path / "old.gguf", parts | without)
    decoder = load(old)
    new = through_file(old, tmp_path / "new.gguf", decoder)
    assert_equal(load(new), decoder)
    for name, (_, values) in parts.items():
        np.testing.assert_array_equal(new.tensors[name].data.view(np.float32), values)


def test_blocks_that_were_not_loaded_are_not_counted(tmp_path):
    old = CASE["glm4moe-nextn"].write(tmp_path / "old.gguf")
    with pytest.warns(UserWarning, match="23 tensors of 1 blocks"):
        decoder = load(old)
    with pytest.warns(UserWarning, match=r"23 tensors of old\.gguf were not loaded"):
        new = through_file(old, tmp_path / "new.gguf", decoder)
    assert new.metadata["glm4moe.block_count"] == old.metadata["glm4moe.block_count"] - 1
    assert new.metadata["glm4moe.nextn_predict_layers"] == 0
    assert_equal(load(new, strict=True), decoder)


def test_keys_and_values_of_layers_that_borrow_them_are_named(tmp_path):
    old = CASE["gemma3n"].write(tmp_path / "old.gguf")
    decoder = load(old)
    with pytest.warns(UserWarning, match=r"15 tensors of old\.gguf .*blk\.20\.attn_k\.weight"):
        new = through_file(old, tmp_path / "new.gguf", decoder)
    assert_equal(load(new), decoder)


def test_blocks_for_prediction_come_back(tmp_path):
    old = CASE["glm4moe-nextn"].write(tmp_path / "old.gguf")
    decoder = load(old, nextn=True)
    new = through_file(old, tmp_path / "new.gguf", decoder)
    assert_equal(load(new, nextn=True), decoder)


@pytest.fixture(scope="module")
def demo():
    return rf.load("demo", progress=False)


def test_a_language_model_says_the_same(demo, tmp_path):
    path = rf.save(demo, tmp_path / "new.gguf")
    again = rf.load(path, progress=False)
    assert_equal(again.model, demo.model)
    options = dict(max_tokens=12, temperature=0)
    assert again.generate("ROMEO:", **options).text == demo.generate("ROMEO:", **options).text
    assert dict(again.metadata)["tokenizer.ggml.tokens"] == demo.metadata["tokenizer.ggml.tokens"]


def test_the_file_that_is_mapped_is_replaced_whole(tmp_path):
    path = shutil.copyfile(DEMO, tmp_path / "demo.gguf")
    old = open_gguf(path)
    before = {name: tensor.data.copy() for name, tensor in old.tensors.items()}
    lm = rf.load(path, progress=False)
    rf.save(lm, path, types={"*.attn_q": "Q4_0"})
    for name, blocks in before.items():  # the map is that of the old file
        np.testing.assert_array_equal(old.tensors[name].data, blocks)
    new = open_gguf(path)
    assert new.tensors["blk.0.attn_q.weight"].format.name == "Q4_0"
    np.testing.assert_array_equal(
        new.tensors["token_embd.weight"].data, before["token_embd.weight"]
    )
    assert [file.name for file in tmp_path.iterdir()] == ["demo.gguf"]


@pytest.mark.parametrize("name, number", [("IQ3_S", 26), ("IQ2_S", 28), ("Q4_K", 14), ("Q2_K", 10)])
def test_the_file_type_is_llama_cpp_s(demo, tmp_path, name, number):
    """22, which also has IQ3_S, is IQ3_XS, a mixture."""
    types = {"*.ffn_down": "Q4_0", "*": name}
    new = open_gguf(rf.save(demo, tmp_path / "new.gguf", types=types))
    assert new.metadata["general.file_type"] == number


def test_types_are_packed_on_the_way(demo, tmp_path):
    types = {"*.ffn_down": "Q5_0", "token_embd": "F16", "*": "Q6_K"}
    new = open_gguf(rf.save(demo, tmp_path / "new.gguf", types=types))
    expected = variables(demo.model.quantize(types))
    assert {name: type_of(one) for name, one in variables(load(new)).items()} == {
        name: type_of(one) for name, one in expected.items()
    }
    assert new.metadata["general.file_type"] == 18
    kernel = rf.dequantize(demo.model.blk[1].ffn_down.kernel)
    np.testing.assert_array_equal(
        new.tensors["blk.1.ffn_down.weight"].data,
        formats.quantize(np.asarray(kernel).T.copy(), "Q5_0"),
    )


def test_metadata_replaces_and_leaves_out(demo, tmp_path):
    changes = {"general.name": "Will", "tokenizer.chat_template": "{{ messages }}", "x.y": [1, 2]}
    new = open_gguf(rf.save(demo, tmp_path / "new.gguf", metadata=changes | {"general.type": None}))
    assert new.metadata["general.name"] == "Will" and "general.type" not in new.metadata
    assert new.metadata["x.y"].tolist() == [1, 2]


PHI3 = DecoderConfig.uniform(
    2,
    Attention(4, 2, 8, RopeConfig(8, base=5e4), fused_qkv=True),
    Gated(72, fused=True),
    norm_epsilon=1e-5,
    width=40,
    vocabulary=91,
    context_length=128,
    tied=False,
    architecture="phi3",
)


@pytest.mark.parametrize(
    "name",
    "stablelm-12b gpt2 starcoder gptneox gptneox-sequential falcon-40b phi2 nemotron minicpm"
    " openelm olmo deepseek afmoe exaone-moe mellum".split(),
)
def test_families_get_the_keys_of_their_configuration(name, tmp_path):
    """Layer norms, positions, experts, windows, factors, clamps, and sizes for each layer."""
    decoder = load(CASE[name].write(tmp_path / "old.gguf"))
    new = open_gguf(rf.save(decoder, tmp_path / "new.gguf"))
    assert_equal(load(new, strict=True), decoder)


def test_a_decoder_takes_the_keys_of_another_model_s_file(demo, tmp_path):
    new = open_gguf(rf.save(demo.model, tmp_path / "new.gguf", metadata=demo.metadata))
    old = open_gguf(DEMO).metadata
    assert {key: new.metadata.describe(key) for key in old} == {
        key: old.describe(key) for key in old
    }
    assert rf.load(new.path, progress=False).tokenizer.encode("ROMEO") == demo.tokenizer.encode(
        "ROMEO"
    )


def test_a_decoder_alone_has_no_tokenizer(demo, tmp_path):
    new = open_gguf(rf.save(demo.model, tmp_path / "new.gguf"))
    assert new.metadata["tokenizer.ggml.model"] == "none"
    assert_equal(load(new, strict=True), load(open_gguf(DEMO)))


@pytest.mark.parametrize("name", [*fresh.FAMILIES, "phi3"])
def test_a_fresh_decoder_gets_the_keys_of_its_configuration(name, tmp_path):
    decoder = Decoder(PHI3, rngs=nnx.Rngs(0)) if name == "phi3" else fresh.decoder(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(open_gguf(rf.save(decoder, tmp_path / "new.gguf")), strict=True)
    found, wanted = variables(again), variables(decoder)
    assert found.keys() == wanted.keys()
    for tensor, variable in wanted.items():
        np.testing.assert_array_equal(found[tensor].get_value(), variable.get_value(), tensor)
    # All numbers of the configuration are equal in float32.
    differ = [*differences(decoder.config, again.config)]
    assert not differ
