"""Weights that are read while the rest is imported are those that loading finds."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from flax import nnx

from rocmforge_jax import ahead
from rocmforge_jax.gguf import GGUFError, open_gguf
from rocmforge_jax.models import load_decoder
from rocmforge_jax.quant import QParam, repack

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    assert ahead._reader is None
    ahead.stop()


@pytest.fixture
def path(reference):
    return reference / "models" / "qwen2.Q4_K_M.gguf"


def planes(decoder):
    return [
        plane
        for _, weight in nnx.to_flat_state(nnx.state(decoder, QParam))
        for plane in weight.get_value().planes.values()
    ]


def test_loading_takes_what_was_read(path, in_cpp, monkeypatch):
    expected = planes(load_decoder(open_gguf(path)))
    ahead.read_ahead(path)
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join()
    monkeypatch.setattr(repack, "planes_of", None)  # nothing is read again
    for plane, like in zip(planes(load_decoder(open_gguf(path))), expected, strict=True):
        assert plane.dtype == like.dtype
        np.testing.assert_array_equal(
            np.asarray(plane).view(np.uint8), np.asarray(like).view(np.uint8)
        )


def test_reading_begins_before_jax_is_imported():
    code = "import sys, rocmforge_jax.ahead; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("platforms", "module", "entry_points", "expected"),
    [
        ("cpu", "found", ["cuda"], True),
        ("cuda,cpu", None, [], False),
        ("", None, [], True),
        ("", "found", [], False),
        ("", None, ["cuda"], False),
    ],
)
def test_only_plugins_have_other_devices(platforms, module, entry_points, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: module)
    monkeypatch.setattr(ahead.importlib.metadata, "entry_points", lambda group: entry_points)
    assert ahead._only_cpu() is expected


def test_with_plugins_jax_decides(path, in_cpp, monkeypatch):
    monkeypatch.setattr(ahead, "_only_cpu", lambda: False)
    test_loading_takes_what_was_read(path, in_cpp, monkeypatch)


def test_another_file_is_not_mistaken_for_it(path, in_cpp, reference):
    ahead.read_ahead(reference / "models" / "qwen2.Q5_1.gguf")
    expected = open_gguf(path).tensors["blk.0.attn_v.weight"].data
    np.testing.assert_array_equal(
        load_decoder(open_gguf(path)).blk[0].attn_v.kernel.get_value().to_bytes(), expected
    )


@pytest.mark.parametrize("why", ["no C++", "little memory", "other activations"])
def test_where_nothing_is_read_ahead_loading_reads_all(why, path, request, monkeypatch):
    if why != "no C++":
        request.getfixturevalue("in_cpp")
    if why == "little memory":
        monkeypatch.setattr(ahead, "available_bytes", lambda: path.stat().st_size)
    ahead.read_ahead(path)
    decoder = load_decoder(
        open_gguf(path), activations="float" if why == "other activations" else "int16"
    )
    np.testing.assert_array_equal(
        decoder.token_embd.embedding.get_value().to_bytes(),
        open_gguf(path).tensors["token_embd.weight"].data,
    )


def test_a_file_that_is_wrong_is_refused_by_who_loads_it(tmp_path, in_cpp):
    (tmp_path / "wrong.gguf").write_bytes(b"GGUF and nothing else")
    ahead.read_ahead(tmp_path / "wrong.gguf")
    with pytest.raises(GGUFError, match="wrong.gguf"):
        open_gguf(tmp_path / "wrong.gguf")
    ahead.stop()


def test_a_command_reads_ahead_and_says_the_same(in_cpp):
    """In a process of its own, where jax and flax are imported meanwhile."""
    command = [
        sys.executable,
        "-m",
        "rocmforge_jax",
        "generate",
        "--prompt",
        "ROMEO:",
        "--max-tokens",
        "20",
        "--temperature",
        "0",
    ]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and runs[0].stderr == ""
