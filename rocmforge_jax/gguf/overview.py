"""What is in a file, as a notebook shows it and as the command `inspect` counts it."""

import collections
import math
from collections.abc import Mapping
from typing import Any

from rocmforge_jax.html import (
    MOST_CHARACTERS,
    Markup,
    details,
    element,
    escape,
    joined,
    sized,
    table,
)

#: Items of an array that are shown.
ITEMS = 8


def types(tensors: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Returns the number of tensors of each type, and their bytes; the largest first."""
    counts, sizes = collections.Counter(), collections.Counter()
    for tensor in tensors.values():
        counts[tensor.format.name] += 1
        sizes[tensor.format.name] += tensor.nbytes
    return {name: (counts[name], size) for name, size in sizes.most_common()}


def parameters(tensors: Mapping[str, Any]) -> int:
    """Counts the numbers of all tensors."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def file_html(file: Any) -> Markup:
    """Shows a GGUFFile: its types, and its metadata and tensors in folded sections."""
    count, nbytes = len(file.tensors), sum(size for _, size in types(file.tensors).values())
    name = file.path.name if len(file.paths) == 1 else f"{file.path.name} ({len(file.paths)} files)"
    numbers = f"{parameters(file.tensors):,} parameters in {count:,} tensors, {sized(nbytes)}"
    by_type = [(kind, f"{n:,}", sized(size)) for kind, (n, size) in types(file.tensors).items()]
    return joined(
        element("b", name),
        element("div", f"GGUF version {file.version}, {file.byte_order} endian, {numbers}"),
        table(("type", "tensors", "bytes"), by_type),
        details(f"{len(file.metadata):,} keys", metadata_html(file.metadata)),
        details(f"{count:,} tensors", tensors_html(file.tensors)),
    )


def metadata_html(metadata: Any) -> Markup:
    """Shows keys, types and values of Metadata, long values shortened."""
    rows = ((key, metadata.describe(key), _value(metadata, key)) for key in metadata)
    return table(("key", "type", "value"), rows)


def tensors_html(tensors: Mapping[str, Any]) -> Markup:
    """Shows the names, types, shapes and bytes of tensors."""
    rows = (
        (name, one.format.name, " x ".join(map(str, one.shape)), f"{one.nbytes:,}")
        for name, one in tensors.items()
    )
    return table(("tensor", "type", "shape", "bytes"), rows)


def _value(metadata: Any, key: str) -> Any:
    """Returns the text of a value: of a long one, and of an array, the beginning."""
    value, count = metadata[key], metadata.entry(key).count
    if count is None:
        return value[: MOST_CHARACTERS + 1] if isinstance(value, bytes) else value
    first = ", ".join(_item(item) for item in value[:ITEMS])
    more = f", and {count - ITEMS:,} more" if count > ITEMS else ""
    return escape(first + more, most=40 * ITEMS)


def _item(item: Any) -> str:
    text = repr(item[:20]) if isinstance(item, str | bytes) else str(item)
    return text + ("..." if isinstance(item, str | bytes) and len(item) > 20 else "")
