"""Run the notebooks and renew their outputs and twins: `python notebooks/execute.py [name ...]`.

Stops at the first cell that fails. A twin is the notebook as a Python file, which shows in a review
what changed.
"""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: The kind of output that a progress bar is: nothing without its kernel.
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    nbclient's CellExecutionError where a cell fails; the file is left alone.

    It runs in this interpreter, on this checkout, in an empty folder: a notebook needs no file but
    those it makes.
    """
    notebook = nbformat.read(path, as_version=4)
    kept = dict(notebook.metadata)
    # without folders to look in, the only kernel is that of sys.executable, whatever the user has
    # installed
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(
        notebook, km=manager, timeout=300, record_timing=False, coalesce_streams=True
    )
    search_path = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        client.resources = {"metadata": {"path": folder}}
        client.execute(cleanup_kc=True, env=os.environ | {"PYTHONPATH": search_path})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
    notebook.metadata = nbformat.from_dict(kept)  # nbclient adds the interpreter's version
    return notebook


def twin(notebook: nbformat.NotebookNode) -> str:
    """The notebook as a Python file with cells, without outputs."""
    plain = nbformat.v4.new_notebook(cells=notebook.cells)
    everything = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "-all"}
    plain.metadata["jupytext"] = everything
    return jupytext.writes(plain, fmt="py:percent")


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for path in NOTEBOOKS:
        if wanted and path.stem not in wanted:
            continue
        print(path.name, file=sys.stderr)
        fresh = execute(path)
        nbformat.write(fresh, path)
        path.with_suffix(".py").write_text(twin(fresh), encoding="utf-8")
