"""Every notebook runs from top to bottom, and says what its committed outputs say.

Their own asserts state what is true.
"""

import importlib
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: Outputs of bytes and of float32 values that are equal everywhere; the others are a model's, and
#: differ in their last digits.
EXACT = {"01_open_a_gguf_file"}
#: Those whose execution is quick and essential.
CORE = {"01_open_a_gguf_file", "02_gguf_to_flax_nnx"}
#: Those that take longest: perplexities of quantised models, and eight devices of a laptop.
LONG = {"04_what_quantisation_costs", "07_several_devices_on_a_laptop"}
_PROGRAM = runpy.run_path(FOLDER / "execute.py")
execute, twin = _PROGRAM["execute"], _PROGRAM["twin"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook) -> dict[str, str]:
    """What each cell printed or showed, by the cell's id."""

    def shown(output):
        return output.text if output.output_type == "stream" else output.data["text/plain"]

    return {cell.id: "".join(map(shown, cell.outputs)) for cell in code_cells(notebook)}


@pytest.mark.core
def test_the_notebooks_are_there():
    found = {path.stem for path in NOTEBOOKS}
    assert found >= CORE | {
        "03_watch_the_model_think",
        "04_what_quantisation_costs",
        "05_qlora_on_a_packed_base",
        "06_a_jit_compiled_script",
        "07_several_devices_on_a_laptop",
    }


def runs():
    """All but the long ones with C++, as users have it, and one in plain XLA; the rest is heavy."""
    for path in NOTEBOOKS:
        core = [pytest.mark.core] if path.stem in CORE else []
        marks = [pytest.mark.heavy] if path.stem in LONG else core
        yield pytest.param(path, "in C++", id=f"{path.stem}-in C++", marks=marks)
        plain = core if path.stem in EXACT else [pytest.mark.heavy]
        yield pytest.param(path, "in plain XLA", id=f"{path.stem}-in plain XLA", marks=plain)


@pytest.mark.parametrize(("path", "library"), list(runs()))
def test_it_runs_without_a_word_on_stderr(path, library, request, monkeypatch):
    # As a user has it; optax needs it too.
    monkeypatch.delenv("JAX_NUMPY_DTYPE_PROMOTION", raising=False)
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION", raising=False)
    if library == "in C++":
        request.getfixturevalue("in_cpp")
    # Building the cache of fonts, once on a machine, writes to stderr.
    importlib.import_module("matplotlib.font_manager")
    fresh = execute(path)
    assert [
        output.text
        for cell in code_cells(fresh)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ] == []
    if path.stem in EXACT and library == "in plain XLA":
        assert text(fresh) == text(nbformat.read(path, as_version=4))


@pytest.mark.core
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_twin_has_the_cells_of_its_notebook(path):
    assert path.with_suffix(".py").read_text() == twin(nbformat.read(path, as_version=4))


@pytest.mark.core
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_in_order_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for id, output in text(notebook).items():
        assert not re.search(r"/(home|root|tmp|Users)/|0x[0-9a-f]{6}", output), (
            f"cell {id} shows a path or an address:\n{output}"
        )
    for output in (output for cell in cells for output in cell.outputs):
        page = output.get("data", {}).get("text/html", "")
        assert not re.search(r"/(home|root|tmp|Users)/|<script", page)


@pytest.mark.core
def test_a_cell_that_fails_stops_the_notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in ("print('before')", "assert 1 + 1 == 3, 'arithmetic'", "print('after')")
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    with pytest.raises(CellExecutionError, match="arithmetic"):
        execute(tmp_path / "wrong.ipynb")
