"""Makes the table of docs/formats.md from the declarations of the formats.

`python -m tools.format_table docs/formats.md` updates it.
"""

import sys
from pathlib import Path

from rocmforge_jax.formats.registry import FORMATS
from tools import marked_table

START = "<!-- table: made by tools/format_table.py -->"
SHORT = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i"}


def table() -> str:
    """Returns the table in Markdown, with one row per format."""
    head = [
        "| type | id | elements | bytes | bits per element | block, in file order | value | packing"
        " for kernels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [_row(f) for f in FORMATS.values()])


def renewed(page: str) -> str:
    """Returns the page with the current table: see `marked_table.renewed`."""
    return marked_table.renewed(page, START, table())


def _row(f):
    ggml_id = "-" if f.ggml_id is None else f.ggml_id
    fields = ", ".join(
        f"{_short(field.dtype)} `{field.name}{list(field.shape) or ''}`" for field in f.fields
    )
    cells = [
        f.name,
        ggml_id,
        f.block,
        f.block_bytes,
        f"{f.bits_per_element:g}",
        fields,
        f.note,
        "-" if f.packing is None else _packing(f.packing),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _packing(packing):
    scales = " and ".join(f"`{name}`" for name in (packing.d, packing.m) if name)
    if packing.scale != "d":
        scales = f"{scales} times {packing.scale}" if scales else packing.scale
    table = " through a table" if packing.table else ""
    return f"{packing.bits}-bit codes{table}; {scales}"


def _short(dtype):
    name = dtype.rstrip("0123456789")
    return SHORT[name] + dtype.removeprefix(name)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
