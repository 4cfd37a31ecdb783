"""Editors and type checkers see what the examples use."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rocmforge_jax as rf

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = set(inspect.signature(rf.SamplingParams).parameters)
PAGES = (
    "README.md",
    "docs/adding-an-architecture.md",
    "docs/chat.md",
    "docs/embeddings.md",
    "docs/explore.md",
    "docs/export.md",
    "docs/generation.md",
    "docs/sharding.md",
)
#: What a type checker must say of a line, and what it must refuse.
TYPES = """
from collections.abc import Iterator

import rocmforge_jax as rf

lm = rf.load("demo")
one: rf.Completion = lm.generate("a", temperature=0.5, top_p=0.9, seed=1)
several: list[rf.Completion] = lm.generate(["a", "b"], stop=["."], params=rf.SamplingParams())
pieces: Iterator[rf.Piece] = lm.generate("a", stream=True, max_tokens=None)
answer: rf.Completion = lm.chat([{"role": "user", "content": "hi"}], temperature=0)
samples: list[rf.Completion] = lm.generate([1, 2], n=2, best_of=3, top_logprobs=1)
grid: list[list[rf.Completion]] = lm.generate([[1, 2], "a"], n=2, cache=lm.cache("ab"))
talk: Iterator[rf.Piece] = lm.chat([], stream=True, template={"tools": []})
"""
REFUSED = (
    'lm.generate("a", temprature=1)',
    'lm.generate("a", temperature="hot")',
    'lm.generate("a", stream=True).text',
    'lm.generate(["a"]).text',
    'lm.chat("hi", max_tokens="many")',
    'rf.load("demo", context_length="long")',
)


@pytest.mark.core
@pytest.mark.parametrize("method", [rf.LanguageModel.generate, rf.LanguageModel.chat])
def test_a_signature_lists_every_option_with_its_type(method):
    parameters = inspect.signature(method).parameters
    assert SAMPLING <= set(parameters) and "stop" in parameters and "params" in parameters
    assert not any(one.kind == one.VAR_KEYWORD for one in parameters.values())
    assert [n for n, one in parameters.items() if n != "self" and one.annotation is one.empty] == []


@pytest.mark.core
def test_tab_completion_of_a_notebook_offers_the_options():
    completer = pytest.importorskip("IPython.core.completer")
    shell = pytest.importorskip("IPython.core.interactiveshell")
    lm = rf.load("demo", progress=False)
    ip = shell.InteractiveShell.instance()
    ip.user_ns["lm"] = lm
    try:
        with completer.provisionalcompleter():
            for typed, wanted in (("te", "temperature="), ("top", "top_p="), ("se", "seed=")):
                code = f"lm.generate('a', {typed}"
                assert wanted in [one.text for one in ip.Completer.completions(code, len(code))]
    finally:
        shell.InteractiveShell.clear_instance()


def examples():
    """(name, code) of the pages whose examples run, and of the notebooks."""
    for page in PAGES:
        found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        assert found, page
        yield page, "\n".join(found)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.stem, "\n\n".join(code)


@pytest.mark.heavy
def test_pyright_passes_on_the_examples_and_refuses_mistakes(tmp_path):
    pyright = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which(
        "pyright"
    )
    works = pyright and subprocess.run([pyright, "--version"], capture_output=True).returncode == 0
    if not works:
        pytest.skip("pyright does not run here")
    for name, code in (*examples(), ("types", TYPES)):
        (tmp_path / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.py").write_text(code)
    wrong = TYPES + "\n".join(REFUSED)
    (tmp_path / "refused.py").write_text(wrong)
    settings = {
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "basic",
        "reportUnusedExpression": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    ran = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    found = json.loads(ran.stdout)["generalDiagnostics"]
    errors = {
        (Path(one["file"]).stem, one["range"]["start"]["line"]): one["message"]
        for one in found
        if one["severity"] == "error"
    }
    passes = {place: text for place, text in errors.items() if place[0] != "refused"}
    assert passes == {}
    first = TYPES.count("\n")
    assert {line for name, line in errors if name == "refused"} == {
        first + i for i in range(len(REFUSED))
    }
