"""What a decoder looks like: tensors by kind, bytes by device, blocks without repeats."""

import collections
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from flax.nnx import reprlib
from jax.core import Tracer

from rocmforge_jax.html import Markup, element, joined, sized, table
from rocmforge_jax.models.claims import tensor_name


class Blocks(reprlib.Representable):
    """The blocks of a decoder as text: neighbours that look alike are one entry."""

    def __init__(self, blocks: Any):
        self._blocks = blocks

    def __nnx_repr__(self):
        yield reprlib.Object("List", kv_sep=": ", start="([", end="])")
        first = 0
        for text, run in itertools.groupby(map(reprlib.colorized, self._blocks)):
            last = first + len(list(run)) - 1
            key = f"{first} to {last}" if last > first else str(first)
            yield reprlib.Attr(key, text, use_raw_value=True)
            first = last + 1


class NotTabulated:
    """Makes `nnx.tabulate` raise an error before it replaces any method.

    It cannot show layers, whose operands are dataclasses, and would leave their methods replaced.
    It sets an attribute on every module first; this descriptor stands for that attribute.
    """

    def __get__(self, module: Any, owner: Any = None) -> Any:
        raise AttributeError("_nnx_tabulate_id")

    def __set__(self, module: Any, value: Any) -> None:
        raise NotImplementedError(
            f"nnx.tabulate cannot show a {type(module).__name__}: print the model, or display it in"
            " a notebook; rocmforge_jax.models.param_count counts its parameters"
        )


def short_attributes(decoder: Any, parts: Iterator[Any]) -> Iterator[Any]:
    """Shortens the configuration and the blocks among the parts of a decoder's repr."""
    config = decoder.config
    summary = f"{config.architecture}, {len(config.layers)} layers, width {config.width}"
    short = {
        "config": f"<DecoderConfig {summary}, vocabulary {config.vocabulary}>",
        "blk": reprlib.colorized(Blocks(decoder.blk)),
    }
    for part in parts:
        key = getattr(part, "key", None)
        yield reprlib.Attr(key, short[key], use_raw_value=True) if key in short else part


def decoder_html(decoder: Any) -> Markup:
    """Shows the sizes of a decoder, its tensors with the layers taken together, and its devices."""
    config, variables = decoder.config, _variables(decoder)
    weights = sum(size for *_, size, _ in variables)
    nbytes = sum(nbytes for *_, nbytes in variables)
    numbers = (
        f"{len(config.layers)} layers, width {config.width}, vocabulary {config.vocabulary:,},"
        f" {weights:,} weights in {sized(nbytes)}, {8 * nbytes / weights:.2f} bits each"
    )
    devices = ((str(device), sized(held)) for device, held in _by_device(decoder).items())
    return joined(
        element("b", config.architecture, " decoder"),
        element("div", numbers),
        table(("tensors", "type", "shape", "weights", "bytes"), _rows(variables)),
        table(("device", "bytes"), devices),
    )


def _variables(decoder: Any) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Lists the name, type, shape, weights and bytes of every variable."""
    found = []
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        value = variable.get_value()
        leaves = jax.tree.leaves(value)
        nbytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        kind = getattr(value, "type_name", None) or str(getattr(value, "dtype", ""))
        shape = tuple(getattr(value, "shape", ()))
        found.append((tensor_name(path), kind, shape, math.prod(shape), nbytes))
    return found


def _rows(variables) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple, list[tuple[int, int]]] = collections.defaultdict(list)
    for name, kind, shape, *sizes in variables:
        groups[re.sub(r"\bblk\.\d+\.", "blk.*.", name), kind, shape].append(tuple(sizes))
    for (name, kind, shape), sizes in groups.items():
        weights, nbytes = map(sum, zip(*sizes))
        count = f" x{len(sizes)}" if len(sizes) > 1 else ""
        yield name + count, kind, " x ".join(map(str, shape)), f"{weights:,}", sized(nbytes)


def _by_device(decoder: Any) -> dict[Any, int]:
    """Counts the bytes of the arrays on each device of this process."""
    held: collections.Counter = collections.Counter()
    for leaf in jax.tree.leaves(nnx.state(decoder)):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            for shard in () if leaf.is_deleted() else leaf.addressable_shards:
                held[shard.device] += shard.data.nbytes
    return dict(held)
