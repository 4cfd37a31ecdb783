"""The command line in this process, and in one of its own."""

import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from rocmforge_jax.cli import main
from rocmforge_jax.gguf import open_gguf, write_gguf
from rocmforge_jax.locate import DEMO


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command line here -> exit code, stdout, stderr."""
    # jax of this process is set up already: leave its cache alone
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))

    def run(*words) -> Ran:
        code = main(list(map(str, words)))
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """A cache folder of the user: what one process compiled, the next one finds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def process(cache_home):
    """Start `python -m rocmforge_jax` with these words -> Popen with text pipes.

    before: a program to run first.
    """
    running = []

    def start(*words, before="") -> subprocess.Popen:
        env = {
            name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
        }
        program = (
            f"{before}\nimport sys, rocmforge_jax.cli\nsys.exit(rocmforge_jax.cli.main())"
            if before
            else ""
        )
        process = subprocess.Popen(
            [
                sys.executable,
                *(["-c", program] if before else ["-m", "rocmforge_jax"]),
                *map(str, words),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env | {"XDG_CACHE_HOME": str(cache_home)},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def without_tokenizer(tmp_path_factory):
    """A model of one layer with a head of its own and no tokenizer: path."""
    random = np.random.default_rng(0)
    D, F, V = 32, 64, 96
    shapes = {"token_embd": (V, D), "output_norm": (D,), "output": (V, D)} | {
        f"blk.0.{name}": shape
        for name, shape in {
            "attn_norm": (D,),
            "attn_q": (D, D),
            "attn_k": (16, D),
            "attn_v": (16, D),
            "attn_output": (D, D),
            "ffn_norm": (D,),
            "ffn_gate": (F, D),
            "ffn_up": (F, D),
            "ffn_down": (D, F),
        }.items()
    }
    metadata = {"general.architecture": "llama"} | {
        f"llama.{key}": value
        for key, value in {
            "block_count": 1,
            "context_length": 64,
            "embedding_length": D,
            "feed_forward_length": F,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.layer_norm_rms_epsilon": 1e-5,
        }.items()
    }
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    weights = {
        f"{name}.weight": random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    write_gguf(path, metadata, {name: ("F32", values) for name, values in weights.items()})
    return path


@pytest.fixture(scope="session")
def with_chat_template(tmp_path_factory):
    """The demo model with a chat template: path."""
    demo = open_gguf(DEMO)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}ROMEO:\n"
    path = tmp_path_factory.mktemp("model") / "chat.gguf"
    write_gguf(
        path,
        dict(demo.metadata) | {"tokenizer.chat_template": template},
        {tensor.name: (tensor.format, tensor.data) for tensor in demo.tensors.values()},
    )
    return path


@pytest.fixture(scope="session")
def lm(with_chat_template):
    """The model of `with_chat_template`, loaded once."""
    import rocmforge_jax

    return rocmforge_jax.load(with_chat_template)


@pytest.fixture
def loaded(lm, monkeypatch):
    """The command line finds the model already loaded."""
    monkeypatch.setattr("rocmforge_jax.load", lambda path, **options: lm, raising=False)
    return lm
