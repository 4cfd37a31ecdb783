"""export: a model as a file, in other types if wanted."""

import re

import pytest

import rocmforge_jax as rf


def types(path):
    gguf = rf.open_gguf(path)
    return {name: tensor.format.name for name, tensor in gguf.tensors.items()}


def test_a_copy(run, tmp_path):
    ran = run("export", "demo", str(tmp_path / "new.gguf"))
    assert (ran.code, ran.out) == (0, "")
    assert re.search(r"new\.gguf: [\d.]+ MB\n", ran.err)
    assert types(tmp_path / "new.gguf") == types(rf.locate.DEMO)


def test_types_of_patterns(run, tmp_path):
    out = str(tmp_path / "new.gguf")
    ran = run("export", "demo", out, "--type", "*.ffn_down=Q8_0", "--type", "q6_k")
    found = types(out)
    assert ran.code == 0 and found["blk.3.ffn_down.weight"] == "Q8_0"
    assert found["blk.3.ffn_up.weight"] == found["token_embd.weight"] == "Q6_K"


def test_a_folder_of_one_type(run, tmp_path):
    assert run("export", "demo", tmp_path / "folder", "--type", "BF16").code == 0
    assert (tmp_path / "folder" / "config.json").exists()


def test_an_existing_file_is_only_replaced_with_force(run, tmp_path):
    (out := tmp_path / "new.gguf").write_text("mine")
    ran = run("export", "demo", out)
    assert (ran.code, ran.err.count("\n")) == (2, 1) and "--force" in ran.err
    assert out.read_text() == "mine"
    assert run("export", "demo", out, "--force").code == 0
    assert types(out) == types(rf.locate.DEMO)


def test_a_folder_with_files_is_refused(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for more in ([], ["--force"]):
        ran = run("export", "demo", tmp_path, *more)
        assert ran.code == 2 and "not empty" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new.gguf", "--type", "Q4_K_M"], "Q4_K_M is a mixture of types.*Q4_K"),
        (["new.gguf", "--type", "*.attn_v=IQ3_M"], "IQ3_M is a mixture"),
        (["new.gguf", "--type", "xyzzy"], "'xyzzy'; docs/formats.md lists them$"),
        (["folder", "--type", "Q4_0"], "F32, F16, BF16: got Q4_0$"),
        (["folder", "--type", "*.attn_q=F16"], "got types of single tensors$"),
        (["new.bin"], r"'new\.bin'.*\.gguf"),
        (["new.gguf", "--type", "Q4_Z"], "'Q4_Z'.*Q4_K"),
        (["new.gguf", "--type", "Q4_K"], "rows of 640, Q4_K"),
        (["new.gguf", "--type", "*.attn_q=IQ2_XXS"], "IQ2_XXS.*importance"),
        (["new.gguf", "--type", "*.atn_q=Q8_0"], r"'\*\.atn_q'"),
        (["new.gguf", "--type", "Q8_0", "--type", "Q6_K"], "all matrices two types: Q6_K"),
    ],
)
def test_what_cannot_be_written_is_a_line_on_stderr(run, tmp_path, words, message):
    out, *options = words
    ran = run("export", "demo", str(tmp_path / out), *options)
    assert (ran.code, ran.out) == (2, "") and ran.err.count("\n") == 1
    assert re.search(message, ran.err.strip())
    assert not list(tmp_path.iterdir())
