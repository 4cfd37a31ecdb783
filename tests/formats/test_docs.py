"""docs/formats.md is current, and what it computes is true."""

import doctest
from pathlib import Path

import pytest

from tools import format_table, marked_table

pytestmark = pytest.mark.core

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"


def test_the_table_is_current():
    page = PAGE.read_text()
    assert format_table.renewed(page) == page, "run: python -m tools.format_table docs/formats.md"


def test_the_worked_example_is_true():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 3 and result.failed == 0


@pytest.mark.parametrize(
    "page", ["", format_table.START, marked_table.END, marked_table.END + format_table.START]
)
def test_a_page_without_its_marks_is_refused(page):
    with pytest.raises(ValueError, match="format_table.py|end of table"):
        format_table.renewed(page)
