"""Adapters in files: llama.cpp's form and PEFT's, in and out."""

import json
import re
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rocmforge_jax as rf
from rocmforge_jax import formats
from rocmforge_jax.adapters.wrap import adapters
from rocmforge_jax.gguf import write_gguf


def matrices(model):
    return {
        name: (*(np.asarray(m.get_value()) for m in (layer.lora_a, layer.lora_b)), layer.scale)
        for name, layer in adapters(model).items()
    }


def assert_equal(got, expected):
    assert matrices(got).keys() == matrices(expected).keys()
    for name, (a, b, scale) in matrices(expected).items():
        found = matrices(got)[name]
        np.testing.assert_array_equal(found[0], a)
        np.testing.assert_allclose(found[1] * found[2], b * scale, rtol=1e-6)


@pytest.mark.parametrize("name", ["adapter.gguf", "folder/of-peft"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_a_saved_adapter_comes_back(decoder, shaken, tmp_path, name, architecture):
    plain = decoder("Q8_0", architecture=architecture)
    # Adapters of two ranks and scales, as several calls make them.
    model = shaken(rf.lora(rf.lora(plain, 3, alpha=7), 5, "blk.1.ffn_*"))
    rf.save_lora(model, tmp_path / name)
    loaded = rf.load_lora(plain, str(tmp_path / name))
    assert_equal(loaded, model)
    assert not adapters(plain)
    kernels = (m.blk[0].attn_q.base_module.kernel.get_value().planes for m in (model, loaded))
    assert all(a is b for a, b in zip(*(planes.values() for planes in kernels)))


def test_the_gguf_file_is_llama_cpp_s(decoder, shaken, tmp_path):
    model = shaken(rf.lora(decoder(), 3, "blk.2.attn_k", alpha=7))
    rf.save_lora(model, tmp_path / "a.gguf")
    gguf = rf.open_gguf(tmp_path / "a.gguf")
    assert dict(gguf.metadata) == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 7.0,
    }
    ((a, b, _),) = matrices(model).values()
    tensors = gguf.tensors
    assert list(tensors) == ["blk.2.attn_k.weight.lora_a", "blk.2.attn_k.weight.lora_b"]
    assert [t.shape for t in tensors.values()] == [(3, 64), (32, 3)]
    for tensor, expected in zip(tensors.values(), (a, b)):
        np.testing.assert_array_equal(tensor.data.view(np.float32), expected.T)


def test_the_folder_is_peft_s(decoder, shaken, tmp_path):
    """Rows of q and k of a llama file are interleaved: row 2 i + j of a head is row j H/2 + i."""
    model = shaken(rf.lora(decoder(), 3, ["*.attn_q", "*.attn_k", "*.attn_v"], alpha=7))
    rf.save_lora(model, tmp_path, base_model="some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = dict(peft_type="LORA", r=3, lora_alpha=7.0, bias="none", task_type="CAUSAL_LM")
    expected["base_model_name_or_path"] = "some/base"
    assert expected.items() <= config.items()
    assert config["target_modules"] == ["k_proj", "q_proj", "v_proj"]
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    assert len(arrays) == 18
    for of_file, name, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        prefix = f"base_model.model.model.layers.2.self_attn.{name}"
        a, b, _ = matrices(model)[f"blk.2.{of_file}.weight"]
        np.testing.assert_array_equal(arrays[f"{prefix}.lora_A.weight"], a.T)
        stored = arrays[f"{prefix}.lora_B.weight"]
        for head in range(heads):
            for i in range(8):
                for j in range(2):
                    row = b.T[16 * head + 2 * i + j]
                    np.testing.assert_array_equal(stored[16 * head + 8 * j + i], row)
    prefix = "base_model.model.model.layers.0.self_attn.v_proj"
    b = matrices(model)["blk.0.attn_v.weight"][1]
    np.testing.assert_array_equal(arrays[f"{prefix}.lora_B.weight"], b.T)


def test_targets_of_some_layers_are_named_in_full(decoder, shaken, tmp_path):
    model = shaken(rf.lora(decoder(tied=False), 2, ["blk.1.attn_q", "*.attn_v", "output"]))
    rf.save_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "model.layers.1.self_attn.q_proj" in config["target_modules"]
    assert "lm_head" in config["target_modules"] and len(config["target_modules"]) == 5
    assert_equal(rf.load_lora(rf.remove_lora(model), tmp_path), model)


def gguf_adapter(path, tensors=None, **metadata):
    a, b = np.full((2, 64), 0.5, np.float32), np.full((32, 2), 0.25, np.float32)
    name = "blk.0.attn_k.weight"
    written = {f"{name}.lora_a": ("F32", a), f"{name}.lora_b": ("F32", b)}
    keys = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    keys |= {key.replace("__", "."): value for key, value in metadata.items()}
    written |= tensors or {}
    write_gguf(
        path,
        {key: value for key, value in keys.items() if value is not None},
        {name: tensor for name, tensor in written.items() if tensor is not None},
    )
    return path


def test_other_types_and_no_alpha(decoder, tmp_path):
    """Without alpha the scale is 1, as in llama.cpp."""
    model = decoder()
    name = "blk.0.attn_k.weight.lora_a"
    values = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    packed = formats.quantize(values, "Q8_0")
    path = gguf_adapter(tmp_path / "a.gguf", {name: ("Q8_0", packed)}, adapter__lora__alpha=None)
    layer = rf.load_lora(model, path).blk[0].attn_k
    assert layer.scale == 1 and rf.load_lora(model, gguf_adapter(path)).blk[0].attn_k.scale == 3
    expected = np.asarray(formats.dequantize(packed, "Q8_0"))
    np.testing.assert_array_equal(layer.lora_a.get_value(), expected.T)


def test_what_is_left_out_is_said(decoder, tmp_path):
    norm = {"blk.0.attn_norm.weight": ("F32", np.ones(64, np.float32))}
    with pytest.warns(UserWarning, match=r"blk\.0\.attn_norm\.weight"):
        assert adapters(rf.load_lora(decoder(), gguf_adapter(tmp_path / "a.gguf", norm)))
    path = gguf_adapter(tmp_path / "a.gguf", adapter__alora__invocation_tokens=[3, 4])
    with pytest.warns(UserWarning, match="alora.invocation_tokens"):
        rf.load_lora(decoder(), path)


@pytest.mark.parametrize(
    "metadata, message",
    [
        (dict(general__type="model"), "general.type is 'model'.*'adapter'"),
        (dict(general__architecture="qwen2"), "'qwen2'.*'llama'"),
        (dict(adapter__type=None), "adapter.type is None.*'lora'"),
        (dict(adapter__lora__alpha="six"), "adapter.lora.alpha.*'six'"),
        (dict(adapter__lora__alpha=float("nan")), "adapter.lora.alpha.*nan"),
    ],
)
def test_other_gguf_files_are_refused(decoder, tmp_path, metadata, message):
    with pytest.raises(rf.GGUFError, match=message):
        rf.load_lora(decoder(), gguf_adapter(tmp_path / "a.gguf", **metadata))


def test_all_that_does_not_fit_is_listed(decoder, tmp_path):
    ones = np.ones
    path = gguf_adapter(
        tmp_path / "a.gguf",
        {
            "blk.0.attn_q.weight.lora_a": ("F32", ones((2, 60), np.float32)),
            "blk.0.attn_q.weight.lora_b": ("F32", ones((64, 3), np.float32)),
            "blk.7.attn_q.weight.lora_a": ("F32", ones((2, 64), np.float32)),
            "blk.7.attn_q.weight.lora_b": ("F32", ones((64, 2), np.float32)),
        },
    )
    with pytest.raises(ValueError) as caught:
        rf.load_lora(decoder(), path)
    for part in ("[2, 60]", "[64, 3]", "[2, 64]", "[64, 2]", "blk.7.attn_q.weight"):
        assert part in str(caught.value)
    name = "blk.0.attn_k.weight"
    path = gguf_adapter(path, {f"{name}.lora_b": None, "blk.0.x": ("F32", ones(3, np.float32))})
    with pytest.raises(rf.GGUFError, match=rf"blk\.0\.x.*lora_a.*{re.escape(name)}.*first"):
        rf.load_lora(decoder(), path)


@pytest.fixture
def folder(decoder, shaken, tmp_path):
    rf.save_lora(shaken(rf.lora(decoder(), 4, "blk.0.attn_v", alpha=8)), tmp_path / "peft")
    return tmp_path / "peft"


def change(folder, **config):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    "config, scale",
    [
        (dict(use_rslora=True), 4),
        (dict(lora_alpha=6), 1.5),
        (dict(alpha_pattern={"v_proj": 2}), 0.5),
        (dict(alpha_pattern={"layers.0.self_attn.v_proj": 12, "q_proj": 2}), 3),
        (dict(alpha_pattern={"proj": 12}), 2),
        (dict(alpha_pattern=None), 2),
    ],
)
def test_peft_s_settings_of_the_scale(decoder, folder, config, scale):
    change(folder, **config)
    assert rf.load_lora(decoder(), folder).blk[0].attn_v.scale == scale
    assert rf.load_lora(decoder(), folder / "adapter_model.safetensors").blk[0].attn_v.rank == 4


def test_weights_of_the_base_beside_an_adapter_are_left_out(decoder, folder):
    """PEFT writes those of lm_head; llama.cpp's converter leaves them out too."""
    path, name = folder / "adapter_model.safetensors", "base_model.model.lm_head.base_layer.weight"
    save_file(load_file(path) | {name: np.ones((45, 64), np.float32)}, path)
    with pytest.warns(UserWarning, match=re.escape(name)):
        model = rf.load_lora(decoder(), folder)
    assert list(adapters(model)) == ["blk.0.attn_v.weight"]


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(peft_type="IA3"), "peft_type is 'IA3'"),
        (dict(use_dora=True), "use_dora"),
        (dict(lora_alpha="big"), "lora_alpha.*'big'"),
        (dict(alpha_pattern={"^model.*": 2}), r"\^model"),
    ],
)
def test_other_kinds_of_peft_are_refused(decoder, folder, config, message):
    change(folder, **config)
    with pytest.raises(ValueError, match=message):
        rf.load_lora(decoder(), folder)


def test_damaged_folders_are_refused(decoder, folder, tmp_path):
    model, weights = decoder(), folder / "adapter_model.safetensors"
    arrays = load_file(weights)
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    extra = {
        "base_model.model.model.embed_tokens.weight": np.ones((3, 3), np.float32),
        "base_model.model.vision.layers.0.self_attn.v_proj.lora_A.weight": np.ones(3, np.float32),
    }
    save_file(arrays | extra, weights)
    with pytest.raises(ValueError, match="embed_tokens.*vision"):
        rf.load_lora(model, folder)
    save_file({f"{name}.lora_A.weight": arrays[f"{name}.lora_A.weight"]}, weights)
    with pytest.raises(ValueError, match=r"blk\.0\.attn_v\.weight.*first"):
        rf.load_lora(model, folder)
    save_file(arrays | {f"{name}.lora_B.weight": np.ones((30, 4), np.float32)}, weights)
    with pytest.raises(ValueError, match=r"\[30, 4\].*\[32, 4\]"):
        rf.load_lora(model, folder)
    weights.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        rf.load_lora(model, folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="adapter_model.bin.*safetensors"):
        rf.load_lora(model, folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        rf.load_lora(model, folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        rf.load_lora(model, folder)
    with pytest.raises(FileNotFoundError, match="missing"):
        rf.load_lora(model, tmp_path / "missing")


def test_what_cannot_be_saved_is_refused(decoder, shaken, tmp_path):
    model = rf.lora(decoder(architecture="deepseek2"), 2)
    with pytest.raises(ValueError, match="deepseek2.*llama.*qwen2"):
        rf.save_lora(model, tmp_path / "peft")
    with pytest.raises(ValueError, match="deepseek2"):
        rf.load_lora(rf.remove_lora(model), tmp_path)
    model = rf.lora(decoder(), 2)
    with pytest.raises(ValueError, match="a.safetensors.*folder"):
        rf.save_lora(model, tmp_path / "a.safetensors")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken"):
        rf.save_lora(model, tmp_path / "taken")
    with pytest.raises(ValueError, match="no adapter to save"):
        rf.save_lora(decoder(), tmp_path / "a.gguf")
    with pytest.raises(ValueError, match=r"blk\.0\.attn_q\.weight|already"):
        rf.load_lora(model, gguf_adapter(tmp_path / "a.gguf"))


def test_an_unknown_layer_has_no_name_in_peft(decoder, tmp_path):
    model = rf.lora(decoder(attention=dict(fused_qkv=True)), 2)
    with pytest.raises(ValueError, match=r"blk\.0\.attn_qkv\.weight"):
        rf.save_lora(model, tmp_path / "peft")
    rf.save_lora(model, tmp_path / "a.gguf")
    assert_equal(rf.load_lora(rf.remove_lora(model), tmp_path / "a.gguf"), model)


def test_a_missing_package_is_named(decoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"rocmforge-jax\[export\]"):
        rf.save_lora(rf.lora(decoder(), 2), tmp_path / "peft")


def test_files_that_are_no_adapters_are_kept(decoder, tmp_path):
    model, path = rf.lora(decoder(), 2), tmp_path / "model.gguf"
    write_gguf(path, {"general.architecture": "llama"}, {"a": ("F32", np.ones((2, 3), np.float32))})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="model.gguf is there and holds no adapter"):
        rf.save_lora(model, path)
    assert path.read_bytes() == before
    for _ in range(2):
        rf.save_lora(model, tmp_path / "adapter.gguf")
    with pytest.raises(ValueError, match="the path is empty"):
        rf.save_lora(model, "")
    with pytest.raises(ValueError, match="the path is empty"):
        rf.save(decoder(), "")
