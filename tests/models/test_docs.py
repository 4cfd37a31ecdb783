"""docs/architectures.md is current."""

from pathlib import Path

import pytest

from tools import architecture_table, marked_table

pytestmark = pytest.mark.core

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"


def test_the_table_of_architectures_is_current():
    page = PAGE.read_text()
    current = architecture_table.renewed(page)
    assert current == page, "run: python -m tools.architecture_table docs/architectures.md"


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="architecture_table.py"):
        architecture_table.renewed(marked_table.END)
