"""Replaces a generated table between two marks of a page."""

END = "<!-- end of table -->"


def renewed(page: str, start: str, table: str) -> str:
    """Returns the page with a current table between its two marks.

    Raises ValueError where a mark is missing.
    """
    before, found, rest = page.partition(start)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the page needs a line {start!r} and, after it, a line {END!r}")
    return f"{before}{start}\n{table}\n{END}{after}"
