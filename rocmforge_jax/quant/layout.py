"""How the planes of a quantised matrix lie in memory.

Of a matrix of N rows with K/block blocks each:

    "groups"   32 inputs side by side, see `quant.word_packed`: what Pallas and C++ kernels read
    "rows"     [..., N, K/block, *field], input axis minor: on GPUs, for types that do not fit
               "groups"
    "columns"  [..., K/block, *field, N], output axis minor: what XLA vectorises for a CPU

In "rows" and "columns" a plane holds one field of every block. Only this file and the products know
the layouts.
"""

import jax.numpy as jnp

from rocmforge_jax.formats import Format
from rocmforge_jax.quant import word_packed

LAYOUTS = ("groups", "rows", "columns")


def check_layout(layout: str, fmt: Format) -> str:
    """Returns the layout, or raises ValueError where it is unknown or cannot hold the type."""
    if layout not in LAYOUTS:
        raise ValueError(f"a plane layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "groups" and not word_packed.can_hold(fmt):
        raise ValueError(f"{fmt} has no layout 'groups': its codes are not small integers")
    return layout


def stored_shape(planes, fmt: Format, layout: str) -> tuple[int, ...]:
    """Returns (..., N, K)."""
    if layout == "groups":
        return word_packed.stored_shape(planes)
    field = fmt.fields[0]
    shape, axes = planes[field.name].shape, len(field.shape)
    if layout == "columns":
        *lead, blocks, rows = shape[: len(shape) - axes - 1] + shape[-1:]
    else:
        *lead, rows, blocks = shape[: len(shape) - axes]
    return (*lead, rows, blocks * fmt.block)


def take_rows(planes, fmt: Format, layout: str, ids):
    """Returns the planes of some rows of a matrix; ids outside it are clipped."""
    if layout == "groups":
        return word_packed.take_rows(planes, ids)
    axes = {field.name: row_axis(len(field.shape), layout) for field in fmt.fields}
    return {
        name: jnp.take(plane, ids, axis=axes[name], mode="clip") for name, plane in planes.items()
    }


def row_axis(field_ndim: int, layout: str) -> int:
    """Returns the axis of a plane that counts the rows, from the end."""
    return -1 if layout == "columns" else -2 - field_ndim


def split(row_bytes, fmt: Format, layout: str):
    """Splits uint8 [..., N, row bytes] into {field: plane} in `layout`. Traceable."""
    *lead, nbytes = row_bytes.shape
    blocks = row_bytes.reshape(*lead, fmt.row_blocks(nbytes), fmt.block_bytes)
    if check_layout(layout, fmt) == "groups":
        return word_packed.split(fmt.split(blocks), fmt)
    return _move_rows(fmt.split(blocks), fmt, "rows", layout)


def join(planes, fmt: Format, layout: str):
    """Joins planes in `layout` into uint8 [..., N, row bytes]: the inverse of `split`."""
    fields = (
        word_packed.join(planes, fmt)
        if layout == "groups"
        else _move_rows(planes, fmt, layout, "rows")
    )
    blocks = fmt.join(fields)
    return blocks.reshape(*blocks.shape[:-2], -1)


def _move_rows(planes, fmt, source, target):
    def moved(field):
        return jnp.moveaxis(
            planes[field.name], *(row_axis(len(field.shape), layout) for layout in (source, target))
        )

    return {field.name: moved(field) for field in fmt.fields}
