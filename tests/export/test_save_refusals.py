"""What cannot be saved is refused before anything is written, with what is wrong."""

import dataclasses
import errno
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rocmforge_jax as rf
from rocmforge_jax.models import Decoder


@pytest.fixture(scope="module")
def demo():
    return rf.load("demo", progress=False)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    assert not [file for file in tmp_path.iterdir() if file.is_file()]


@pytest.mark.parametrize("name", ["model.bin", "model.gguf.part"])
def test_another_ending(demo, tmp_path, name):
    with pytest.raises(ValueError, match=rf"'{re.escape(name)}' .*gguf \(\.gguf\)"):
        rf.save(demo, tmp_path / name)


def test_another_format(demo, tmp_path):
    with pytest.raises(ValueError, match=r"gguf \(\.gguf\).*'ggml'"):
        rf.save(demo, tmp_path / "model.gguf", format="ggml")


@pytest.mark.parametrize(
    ("model", "name"), [("demo", "str"), (nnx.Linear, "ModuleMeta"), (None, "None")]
)
def test_what_is_no_model(tmp_path, model, name):
    with pytest.raises(TypeError, match=name):
        rf.save(model, tmp_path / "model.gguf")


def test_what_is_no_path(demo):
    with pytest.raises(TypeError, match="path, got 5"):
        rf.save(demo, 5)  # pyright: ignore[reportArgumentType]


def test_a_folder(demo, tmp_path):
    (tmp_path / "model.gguf").mkdir()
    (tmp_path / "model.gguf" / "notes").touch()
    with pytest.raises(FileExistsError, match="holds 1 files"):
        rf.save(demo, tmp_path / "model.gguf")
    with pytest.raises(IsADirectoryError, match=r"model\.gguf is a folder"):
        rf.save(demo, tmp_path / "model.gguf", format="gguf")


def test_a_file_in_place_of_a_folder(demo, tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(NotADirectoryError, match=r"notes is a file"):
        rf.save(demo, tmp_path / "notes" / "missing" / "model.gguf")
    (tmp_path / "notes").unlink()


def test_a_disk_without_room(demo, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"room for 1\.2 MB, the model takes 2\.\d MB") as error:
        rf.save(demo, tmp_path / "model.gguf")
    assert error.value.errno == errno.ENOSPC


def test_types_that_cannot_be(demo, tmp_path):
    with pytest.raises(ValueError, match="4 with rows of 640, Q4_K blocks of 256: .*ffn_down"):
        rf.save(demo, tmp_path / "model.gguf", types="Q4_K")
    with pytest.raises(NotImplementedError, match="IQ1_S"):
        rf.save(demo, tmp_path / "model.gguf", types={"token_embd": "IQ1_S"})
    with pytest.raises(ValueError, match=r"'\*\.atn'"):
        rf.save(demo, tmp_path / "model.gguf", types={"*.atn": "Q8_0"})


def test_adapters(demo, tmp_path):
    model = nnx.clone(demo.model)
    attn_q = model.blk[2].attn_q
    attn_q.lora_a = nnx.Param(jnp.zeros((256, 3)))
    with pytest.raises(ValueError, match=r"1 variables .*blk\.2\.attn_q\.weight\.lora_a.*[Mm]erge"):
        rf.save(model, tmp_path / "model.gguf")


def test_an_array_of_a_dtype_that_files_lack(demo, tmp_path):
    model = nnx.clone(demo.model)
    model.output_norm.scale = nnx.Param(np.ones(256, np.float64))
    with pytest.raises(ValueError, match=r"output_norm\.weight is float64 \[256\]"):
        rf.save(model, tmp_path / "model.gguf")


def test_a_configuration_that_no_key_says(demo, tmp_path):
    config = dataclasses.replace(demo.model.config, embedding_scale=3.0, logit_cap=7.0)
    model = Decoder(config, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"llama .*embedding_scale is 3, .* as 1; logit_cap is 7\.0, .* as None"
    ):
        rf.save(model, tmp_path / "model.gguf")


def test_a_language_model_without_the_keys_of_its_tokenizer(demo, tmp_path):
    lm = rf.LanguageModel(demo.model, demo.tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer.*metadata=loaded\.metadata"):
        rf.save(lm, tmp_path / "model.gguf")


def test_metadata_that_are_no_mapping(demo, tmp_path):
    with pytest.raises(TypeError, match="got str"):
        rf.save(demo, tmp_path / "model.gguf", metadata="general.name")  # pyright: ignore


def test_metadata_that_gguf_has_no_type_for(demo, tmp_path):
    with pytest.raises(ValueError, match=r"'x\.y'.*object"):
        rf.save(demo, tmp_path / "model.gguf", metadata={"x.y": object()})
