"""Reports which backend computes each operation of a model on this machine, and why.

The report traces a decode step and a prompt, or for encoders the embedding of a text. It lists the
decisions of `backends.choose`, so it always agrees with what runs.
"""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import nnx

from rocmforge_jax.backends import Decision, record
from rocmforge_jax.html import table
from rocmforge_jax.models.claims import tensor_name
from rocmforge_jax.models.decoder import Decoder

#: Tokens of the prompt that is traced, and slots of its cache.
_PROMPT, _SLOTS = 128, 256


@dataclasses.dataclass(frozen=True)
class Entry:
    """One decision.

    Attributes:
        tokens: "one token" or "many tokens", of one sequence.
        name: The names of the operands in the file, joined by " + ". Without such operands, the
            name of the operation.
        kind: The types or dtypes of these operands, joined by " + ".
        operation: What is computed, such as "matmul" or "attention".
        backend: "pallas", "cpp" or "xla".
        why: What the backend does, or why no other backend supports the operation.
    """

    tokens: str
    name: str
    kind: str
    operation: str
    backend: str
    why: str


class KernelReport(tuple):
    """Entries in the order in which they are computed. As text, equal layers share a line."""

    def _rows(self) -> list[tuple[str, ...]]:
        def of_all_layers(entry):
            return dataclasses.replace(entry, name=re.sub(r"\bblk\.\d+\.", "blk.*.", entry.name))

        counts = collections.Counter(map(of_all_layers, self))
        rows = []
        for entry, count in counts.items():
            _, name, *others = dataclasses.astuple(entry)
            rows.append((entry.tokens, f"{name} x{count}" if count > 1 else name, *others))
        return rows

    def __str__(self):
        rows = self._rows()
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        cells = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
        return "\n".join("  ".join([*padded, row[-1]]) for padded, row in zip(cells, rows))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header = [field.name for field in dataclasses.fields(Entry)]
        return table(header, self._rows(), most=200)


def kernel_report(model: Decoder) -> KernelReport:
    """Lists the backend of every operation of a model on JAX's default device.

    A step that is traced now uses the same backends. On a GPU, this tries every kernel that the
    model needs, like its first use.
    """
    if not isinstance(model, Decoder):
        raise TypeError(
            f"kernel_report takes a Decoder, such as `lm.model`, got a {type(model).__name__}"
        )
    names = _names(model)
    entries = []
    for tokens, count in (("one token", 1), ("many tokens", _PROMPT)):
        with record() as decisions:
            jax.eval_shape(lambda count=count: _step(model, count))
        entries += [_entry(tokens, decision, names) for decision in decisions]
    return KernelReport(entries)


def _step(model, count):
    tokens = jnp.zeros((1, count), jnp.int32)
    if not model.config.causal:
        pooling = "mean" if model.config.embedding_head.classifier is None else "rank"
        return model.embed(tokens, jnp.full((1,), count, jnp.int32), pooling=pooling)
    cache = model.init_cache(1, _SLOTS)
    return model(tokens, cache, last_only=True)[0]


def _names(model) -> dict[int, tuple[str, str]]:
    """Returns the name and the type of every matrix, by the id of its first array."""
    names = {}
    for path, module in nnx.iter_modules(model):
        for attribute, variable in vars(module).items():
            if isinstance(variable, nnx.Variable) and len(variable.shape) > 1:
                value = variable.get_value()
                kind = getattr(value, "type_name", None) or str(value.dtype)
                names[id(jax.tree.leaves(value)[0])] = tensor_name((*path, attribute)), kind
    return names


def _entry(tokens: str, decision: Decision, names) -> Entry:
    leaves = jax.tree.leaves(decision.operands)
    found = list(dict.fromkeys(names[id(leaf)] for leaf in leaves if id(leaf) in names))
    operation, choice = decision.operation, decision.choice
    name = " + ".join(name for name, _ in found) or operation.name
    kinds = [kind for _, kind in found] or [_kind(decision.operands)]
    kind = " + ".join(dict.fromkeys(kinds))
    return Entry(tokens, name, kind, operation.name, choice.name, choice.reason)


def _kind(operands) -> str:
    """Returns the type, or else the dtype, of the first operand; for operands without a name."""
    leaves = jax.tree.leaves(operands, is_leaf=lambda leaf: hasattr(leaf, "type_name"))
    types = [getattr(leaf, "type_name", None) or str(getattr(leaf, "dtype", "")) for leaf in leaves]
    return next(filter(None, types), "")
