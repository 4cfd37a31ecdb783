"""The examples of the pages run."""

import re
from pathlib import Path

import jax
import pytest

import rocmforge_jax

ROOT = Path(__file__).resolve().parents[1]


PAGES = [
    "README.md",
    "docs/adding-an-architecture.md",
    "docs/chat.md",
    "docs/embeddings.md",
    "docs/explore.md",
    "docs/export.md",
    "docs/flax.md",
    "docs/generation.md",
    "docs/index.md",
    "docs/scripts/README.md",
    "docs/sharding.md",
]


#: The pages whose examples run in plain XLA, too, without being asked for.
PLAIN = {"README.md", "docs/embeddings.md", "docs/flax.md"}


def runs():
    for page in PAGES:
        yield page, "in C++"
        marks = [] if page in PLAIN else [pytest.mark.heavy]
        yield pytest.param(page, "in plain XLA", marks=marks)


@pytest.mark.parametrize(("page", "library"), list(runs()))
def test_the_examples_of_a_page_run(page, library, tmp_path, monkeypatch, request):
    if library == "in C++":
        request.getfixturevalue("in_cpp")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert examples
    monkeypatch.chdir(tmp_path)
    architectures = "rocmforge_jax.models.architectures.ARCHITECTURES"
    # A page registers one.
    monkeypatch.setattr(architectures, dict(rocmforge_jax.models.ARCHITECTURES))
    names = {}
    # As a user has it; optax needs it too.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for example in examples:
            exec(compile(example, page, "exec"), names)
