"""What a quantised tensor looks like in a notebook: its values, and one block taken apart."""

import functools
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from rocmforge_jax import formats
from rocmforge_jax.html import (
    Markup,
    element,
    escape,
    histogram,
    joined,
    sized,
    table,
)
from rocmforge_jax.quant import layout as layouts
from rocmforge_jax.quant import word_packed

#: Values that the histogram counts, at most, and its bins.
MOST_VALUES, BINS = 1 << 16, 60
#: Numbers of a field that are shown.
MOST_NUMBERS = 64


def readable(array: Any) -> bool:
    """Returns whether this process can read the numbers of an array.

    It cannot read shapes without data, arrays that are being traced or were donated, and shards of
    other processes.
    """
    if isinstance(array, Tracer) or not isinstance(array, jax.Array):
        return isinstance(array, np.ndarray)
    return array.is_fully_addressable and not array.is_deleted()


def qtensor_html(w: Any) -> Markup:
    """Shows a QTensor: sizes, a histogram of the values of some rows, and its first block."""
    bits = 8 * w.nbytes / w.size
    head = joined(
        element("b", f"{w.type_name} {' x '.join(map(str, w.shape))}"),
        element(
            "div",
            f"{w.size:,} weights in {sized(w.nbytes)}, {bits:.2f} bits each, layout {w.layout}"
            + (", rows of the file seen as columns" if w.transposed else ""),
        ),
    )
    if not all(map(readable, w.planes.values())):
        return head
    planes = w.planes
    if any(len(plane.sharding.device_set) > 1 for plane in planes.values()):
        planes = jax.device_get(planes)
    N, K = w.stored_shape[-2:]
    ids = np.linspace(0, N - 1, min(N, max(1, MOST_VALUES // K))).astype(np.int32)
    values, fields, affine = jax.device_get(
        _some_values(planes, ids, w.type_name, w.layout, w.padding)
    )
    values = values.astype(np.float64)
    block = values.reshape(-1)[: w.format.block]
    return joined(head, _values_html(values, w.size), _block_html(w.format, fields, affine, block))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _some_values(planes: dict[str, Any], ids: Any, type_name: str, layout: str, padding: int):
    """Returns the values of rows of the first matrix, and the first block's fields and Affine.

    It is one program: op by op it would take seconds.
    """
    fmt = formats.get(type_name)
    lead = len(layouts.stored_shape(planes, fmt, layout)) - 2
    first = {name: plane[(0,) * lead] for name, plane in planes.items()}
    taken = layouts.take_rows(first, fmt, layout, ids)
    packed = layouts.join(word_packed.without_padding(taken, padding), fmt, layout)
    fields = fmt.split(packed[0, : fmt.block_bytes])
    affine = None if fmt.affine is None else fmt.affine(**fields)
    return formats.dequantize(packed, fmt), fields, affine


def _values_html(values: np.ndarray, size: int) -> Markup:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return escape(f"none of {values.size:,} values is finite")
    low, high = float(finite.min()), float(finite.max())
    counts, _ = np.histogram(finite, BINS, (low, high if high > low else low + 1))
    odd = values.size - finite.size
    numbers = (
        f"{values.size:,} of {size:,} values: mean {finite.mean():.4g}, standard deviation"
        f" {finite.std():.4g}" + (f", {odd:,} not finite" if odd else "")
    )
    return joined(histogram(counts.tolist(), low, high), element("div", numbers))


def _block_html(fmt: formats.Format, fields: dict, affine: Any, values: np.ndarray) -> Markup:
    """Takes a block apart: its fields, then its scales, biases and codes, its values."""
    rows = [
        (field.name, f"{field.dtype} {list(field.shape) or ''}", _numbers(fields[field.name]))
        for field in fmt.fields
    ]
    parts = {"values": values}
    if affine is not None:
        parts = dict(scales=affine.scale, biases=affine.bias, codes=affine.codes) | parts
    rows += [
        (element("i", name), "", _numbers(value))
        for name, value in parts.items()
        if value is not None
    ]
    title = f"the first block: {fmt.block} weights in {fmt.block_bytes} bytes. {fmt.note}"
    return joined(element("div", title), table(("field", "kind", "numbers"), rows))


def _numbers(values: Any) -> Markup:
    values = np.asarray(values).reshape(-1)
    is_float = values.dtype.kind not in "iub"
    shown = [f"{v:.4g}" if is_float else str(v) for v in values[:MOST_NUMBERS].tolist()]
    more = f", and {values.size - MOST_NUMBERS:,} more" if values.size > MOST_NUMBERS else ""
    return escape(", ".join(shown) + more, most=1000)
