"""How the planes of a quantised matrix lie in memory.

Of a matrix of N rows with K/block blocks each:

    "groups"   see `quant.word_packed`      32 inputs side by side: what the kernels for GPUs and the products in C++ read
    "rows"     [..., N, K/block, *field]    input axis minor: on GPUs, for types that "groups" cannot hold
    "columns"  [..., K/block, *field, N]    output axis minor: what XLA vectorises for a CPU

In the last two a plane holds one field of every block, and fields keep their order. `split` and the
implementations of matmul know this; nobody else.
"""

import jax
import jax.numpy as jnp

from rocmforge_jax.formats import Format
from rocmforge_jax.quant import word_packed

LAYOUTS = ("groups", "rows", "columns")


def default_layout(
    fmt: Format, device: jax.Device | None = None, *, activations: str | None = None
) -> str:
    """The layout of a type that is fast on a device (default: the one jax computes on) for a mode
    of activations (default: the default).
    """
    from rocmforge_jax.quant import native

    platform = jax.default_backend() if device is None else device.platform
    if word_packed.can_hold(fmt) and (platform != "cpu" or native.wanted(activations)):
        return "groups"
    return "columns" if platform == "cpu" else "rows"


def check_layout(layout: str, fmt: Format) -> str:
    if layout not in LAYOUTS:
        raise ValueError(f"a plane layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "groups" and not word_packed.can_hold(fmt):
        raise ValueError(f"{fmt} has no layout 'groups': its codes are no small integers")
    return layout


def stored_shape(planes, fmt: Format, layout: str) -> tuple[int, ...]:
    """(..., N, K)."""
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
    """The planes of some rows of a matrix; ids outside it are clipped."""
    if layout == "groups":
        return word_packed.take_rows(planes, ids)
    axes = {field.name: row_axis(len(field.shape), layout) for field in fmt.fields}
    return {
        name: jnp.take(plane, ids, axis=axes[name], mode="clip") for name, plane in planes.items()
    }


def row_axis(field_ndim: int, layout: str) -> int:
    """The axis of a plane that counts the rows, from the end."""
    return -1 if layout == "columns" else -2 - field_ndim


def split(row_bytes, fmt: Format, layout: str):
    """uint8 [..., N, row bytes] -> {field: plane} in `layout`. Traceable."""
    *lead, nbytes = row_bytes.shape
    blocks = row_bytes.reshape(*lead, fmt.row_blocks(nbytes), fmt.block_bytes)
    if check_layout(layout, fmt) == "groups":
        return word_packed.split(fmt.split(blocks), fmt)
    return _move_rows(fmt.split(blocks), fmt, "rows", layout)


def join(planes, fmt: Format, layout: str):
    """The inverse of `split`: planes in `layout` -> uint8 [..., N, row bytes]."""
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
