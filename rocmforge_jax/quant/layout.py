"""How the planes of a quantised matrix lie in memory.

A plane holds one field of every block of a matrix of N rows with K/block blocks each. The two layouts differ in where the
rows are; fields keep their order:

    "rows"     [..., N, K/block, *field]    input axis minor: a GPU thread block reads whole rows
    "columns"  [..., K/block, *field, N]    output axis minor: a CPU vectorises over the outputs

`split` and the implementations of matmul know this; nobody else.
"""

import jax
import jax.numpy as jnp

from rocmforge_jax.formats import Format

LAYOUTS = ("rows", "columns")


def default_layout(device: jax.Device | None = None) -> str:
    """The layout that is fast on a device (default: the one jax computes on)."""
    platform = jax.default_backend() if device is None else device.platform
    return "columns" if platform == "cpu" else "rows"


def check_layout(layout: str) -> str:
    if layout not in LAYOUTS:
        raise ValueError(f"a plane layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    return layout


def row_axis(field_ndim: int, layout: str) -> int:
    """The axis of a plane that counts the rows, from the end."""
    return -1 if layout == "columns" else -2 - field_ndim


def split(row_bytes, fmt: Format, layout: str):
    """uint8 [..., N, row bytes] -> {field: plane} in `layout`. Traceable."""
    *lead, nbytes = row_bytes.shape
    blocks = row_bytes.reshape(*lead, fmt.row_blocks(nbytes), fmt.block_bytes)
    return _move_rows(fmt.split(blocks), fmt, "rows", check_layout(layout))


def join(planes, fmt: Format, layout: str):
    """The inverse of `split`: planes in `layout` -> uint8 [..., N, row bytes]."""
    blocks = fmt.join(_move_rows(planes, fmt, check_layout(layout), "rows"))
    return blocks.reshape(*blocks.shape[:-2], -1)


def _move_rows(planes, fmt, source, target):
    moved = lambda field: jnp.moveaxis(planes[field.name], *(row_axis(len(field.shape), layout) for layout in (source, target)))
    return {field.name: moved(field) for field in fmt.fields}
