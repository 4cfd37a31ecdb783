"""The tables of docs/architectures.md and docs/coverage.md, and README's count, are current."""

from pathlib import Path

import pytest

from rocmforge_jax.models.families import FAMILIES
from tools import architecture_table, coverage_table, marked_table

pytestmark = pytest.mark.core

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("tool", "name"),
    [(architecture_table, "architectures.md"), (coverage_table, "coverage.md")],
    ids=["architectures", "coverage"],
)
def test_the_table_is_current(tool, name):
    page = (DOCS / name).read_text()
    assert tool.renewed(page) == page, f"run: python -m {tool.__name__} docs/{name}"


def test_readme_counts_the_architectures():
    assert f"[{len(FAMILIES)} architectures]" in (DOCS.parent / "README.md").read_text()


@pytest.mark.parametrize("tool", [architecture_table, coverage_table])
def test_a_page_without_its_marks_is_refused(tool):
    with pytest.raises(ValueError, match=f"{tool.__name__.removeprefix('tools.')}.py"):
        tool.renewed(marked_table.END)
