"""Which implementation each weight and operation of a model uses here, and why."""

import collections
import dataclasses
import re

import numpy as np
from flax import nnx

from rocmforge_jax.models.decoder import Decoder
from rocmforge_jax.models.load import tensor_name
from rocmforge_jax.nn.attention import kernel_target
from rocmforge_jax.quant import QTensor, kernels


@dataclasses.dataclass(frozen=True)
class Entry:
    """name: a tensor of the file, or "attention". kind: its type, or a dtype. operation: "few rows" (up to 3, or 16 in float32), "many
    rows" or "product"; of attention, "one token" or "many tokens". implementation: "triton" or "xla". why: what the kernel does, or
    why there is none."""

    name: str
    kind: str
    operation: str
    implementation: str
    why: str


class KernelReport(tuple):
    """Entries in the order of the model. As text, layers that agree share a line."""

    def __str__(self):
        lines = collections.Counter(
            dataclasses.replace(entry, name=re.sub(r"^blk\.\d+\.", "blk.*.", entry.name)) for entry in self
        )  # fmt: skip
        rows = [(f"{e.name} x{count}" if count > 1 else e.name, e.kind, e.operation, e.implementation, e.why) for e, count in lines.items()]
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in rows)


def kernel_report(model: Decoder) -> KernelReport:
    """What runs for each matrix and for attention, on the device that jax computes on and with ROCMFORGE_KERNELS as it is.

    On a GPU this tries every kernel that the model needs, as its first use would.
    """
    entries = []
    for path, module in nnx.iter_modules(model):
        for attribute, variable in vars(module).items():
            if isinstance(variable, nnx.Variable) and len(variable.shape) > 1:
                entries += _of_weight(tensor_name((*path, attribute)), variable.get_value(), model.activations)
    config, dtype = model.config, np.dtype(model.dtype)
    shape = config.heads // config.kv_heads, config.head_width, dtype
    whats = (False, "one token", "reads the cache once for all heads of a group"), (True, "many tokens", "flash attention")
    for several, tokens, what in whats:
        found = _tried(lambda: kernel_target(several, *shape), what)
        entries.append(Entry("attention", dtype.name, tokens, *found))
    return KernelReport(entries)


def _of_weight(name, weight, mode):
    if not isinstance(weight, QTensor):
        return [Entry(name, str(weight.dtype), "product", "xla", "the weight is not packed")]
    few = _tried(lambda: kernels.target_of(weight, mode=mode), f"packed weight, {mode} activations")
    many = _tried(lambda: kernels.target_of(weight, mode=mode), "matrix units; from 65 rows on dequantised first")
    return [Entry(name, weight.type_name, operation, *found) for operation, found in (("few rows", few), ("many rows", many))]


def _tried(target, what: str) -> tuple[str, str]:
    if "triton" not in kernels.order():
        return "xla", "ROCMFORGE_KERNELS=xla"
    try:
        return "triton", f"{what}, {target()}"
    except NotImplementedError as reason:
        return "xla", str(reason)

