"""Replaces a generated table between two marker lines of a page."""

END = "<!-- end of table -->"


def renewed(page: str, start: str, table: str) -> str:
    """Replaces the text between two marker lines of a page.

    Args:
        page: The text of the page.
        start: The marker line before the table; END is the one after it.
        table: The new table.

    Returns:
        The new text of the page.

    Raises:
        ValueError: A marker line is missing.
    """
    before, found, rest = page.partition(start)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the page needs a line {start!r} and, after it, a line {END!r}")
    return f"{before}{start}\n{table}\n{END}{after}"
