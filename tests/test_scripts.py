"""The scripts of docs/scripts do what they say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import rocmforge_jax as rf

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "scripts"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(name, *arguments): what a script prints."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_all_scripts_are_short_and_listed():
    page = (FOLDER / "README.md").read_text()
    scripts = list(FOLDER.glob("*.py"))
    assert len(scripts) == 4
    for script in scripts:
        assert f"({script.name})" in page
        assert len(script.read_text().splitlines()) < 40


def test_a_stopped_completion_goes_on(run, tmp_path):
    prompts = [{"prompt": f"ACT {i}", "id": i} for i in range(11)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    run("complete_jsonl.py", "demo", "in.jsonl", "out.jsonl", 3)
    whole = (tmp_path / "out.jsonl").read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [{"prompt": row["prompt"], "id": row["id"]} for row in rows] == prompts
    assert all(row["completion"] for row in rows)
    # Eight lines are a batch; the ninth was being written.
    lines = whole.splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text("".join(lines[:8]) + lines[8][:9])
    run("complete_jsonl.py", "demo", "in.jsonl", "out.jsonl", 3)
    assert (tmp_path / "out.jsonl").read_text() == whole


def test_the_loop_measures_three_ways(run):
    *measured, text = run("own_loop.py").split("arrays\n")
    assert len(measured) == 3 and all(" ms to dispatch a step of " in line for line in measured)
    expected = rf.load("demo", progress=False).generate("ROMEO:", max_tokens=40, temperature=0)
    assert text.strip() and expected.text.strip().startswith(text.strip()[:20])


def test_the_classifier_is_right(run, tmp_path):
    right, _, texts, *_ = run("classify.py").split()[:4]
    assert int(texts) >= 10 and int(right) >= 0.8 * int(texts)
    rows = [
        {"text": f"{word} number {i}", "label": word} for i in range(8) for word in ("a", "b", "c")
    ]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert "3 classes" in run("classify.py", "demo", "texts.jsonl")


def test_exported_programs_run_without_the_package(tmp_path):
    """In a fresh process, with equal logits and the tokens that the model would choose."""
    model = rf.load("demo", backend="xla", progress=False).model
    rf.export_program(model, tmp_path / "exported")
    ids = [3, 141, 59, 26]
    program = (
        "import runpy, sys\n"
        f"runpy.run_path({str(FOLDER / 'run_exported.py')!r}, run_name='__main__')\n"
        "assert not {'rocmforge_jax', 'pallas_kernels', 'flax'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "exported"), *map(str, ids)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    logits, found = map(json.loads, run.stdout.splitlines())
    expected, _ = model(jnp.array([ids], jnp.int32), last_only=True)
    np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-5)
    assert found[:4] == ids and len(found) == 16
    likeliest = model(jnp.array([found], jnp.int32))[0].argmax(axis=-1)[0, 3:-1]
    assert found[4:] == likeliest.tolist()


def test_an_exported_program_continues_a_single_token(run, tmp_path):
    model = rf.load("demo", backend="xla", layers=1, progress=False).model
    rf.export_program(model, tmp_path / "exported", platforms="cpu")
    logits, found = map(json.loads, run("run_exported.py", "exported", 59).splitlines())
    expected, _ = model(jnp.array([[59]], jnp.int32), last_only=True)
    np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-5)
    assert found[:2] == [59, int(np.argmax(logits))]


def test_usage_without_arguments(run):
    with pytest.raises(SystemExit, match="FOLDER ID"):
        run("run_exported.py")
