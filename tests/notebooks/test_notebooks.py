"""Every notebook runs from top to bottom, and says what its committed outputs say.

Their own asserts state what is true.
"""

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
execute = runpy.run_path(FOLDER / "execute.py")["execute"]

pytestmark = pytest.mark.core


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook) -> dict[str, str]:
    """What each cell printed or showed, by the cell's id."""

    def shown(output):
        return output.text if output.output_type == "stream" else output.data["text/plain"]

    return {cell.id: "".join(map(shown, cell.outputs)) for cell in code_cells(notebook)}


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} >= {
        "01_open_a_gguf_file",
        "02_gguf_to_flax_nnx",
        "05_qlora_on_a_packed_base",
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_the_twin_of_a_notebook_has_its_cells(path):
    """Jupytext's form: code as it is, text behind a number sign."""
    twin = path.read_text()
    for cell in nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells:
        lines = cell.source.splitlines()
        if cell.cell_type == "markdown":
            lines = [f"# {line}".rstrip() for line in lines]
        marker = "# %%" if cell.cell_type == "code" else "# %% [markdown]"
        assert "\n".join([marker, *lines]) in twin
    assert twin.count("\n# %%") == len(
        nbformat.read(path.with_suffix(".ipynb"), as_version=4).cells
    )


@pytest.mark.parametrize("library", ["in C++", "in plain XLA"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_without_a_word_on_stderr(path, library, request, monkeypatch):
    # As a user has it; optax needs it too.
    monkeypatch.delenv("JAX_NUMPY_DTYPE_PROMOTION", raising=False)
    monkeypatch.delenv("JAX_NUMPY_RANK_PROMOTION", raising=False)
    if library == "in C++":
        request.getfixturevalue("in_cpp")
    fresh = execute(path)
    assert [
        output.text
        for cell in code_cells(fresh)
        for output in cell.outputs
        if output.get("name") == "stderr"
    ] == []
    if path.stem in EXACT and library == "in plain XLA":
        assert text(fresh) == text(nbformat.read(path, as_version=4))


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


def test_a_cell_that_fails_stops_the_notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(source)
        for source in ("print('before')", "assert 1 + 1 == 3, 'arithmetic'", "print('after')")
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "wrong.ipynb")
    with pytest.raises(CellExecutionError, match="arithmetic"):
        execute(tmp_path / "wrong.ipynb")
