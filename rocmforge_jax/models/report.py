"""Which implementation each weight and operation of a model uses here, and why."""

import collections
import dataclasses
import functools
import os
import re

import numpy as np
from flax import nnx

from rocmforge_jax.models.decoder import Decoder
from rocmforge_jax.models.load import tensor_name
from rocmforge_jax.nn.attention import kernel_target
from rocmforge_jax.nn.moe import router_target
from rocmforge_jax.quant import QTensor, kernels, native


@dataclasses.dataclass(frozen=True)
class Entry:
    """name: a tensor of the file, or "attention".

    kind: its type, or a dtype. operation: "few rows" (up to 3, or 16 in float32), "many rows" or
    "product"; of what chooses experts, "few tokens" (up to 16); of attention, "one token" or "many
    tokens". implementation: "triton", "native" (C++, on CPUs) or "xla". why: what the kernel does,
    or why there is none.
    """

    name: str
    kind: str
    operation: str
    implementation: str
    why: str


class KernelReport(tuple):
    """Entries in the order of the model. As text, layers that agree share a line."""

    def __str__(self):
        lines = collections.Counter(
            dataclasses.replace(entry, name=re.sub(r"^blk\.\d+\.", "blk.*.", entry.name))
            for entry in self
        )
        rows = [
            (
                f"{e.name} x{count}" if count > 1 else e.name,
                e.kind,
                e.operation,
                e.implementation,
                e.why,
            )
            for e, count in lines.items()
        ]
        widths = [max(map(len, column)) for column in list(zip(*rows))[:-1]]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]])
            for row in rows
        )


def kernel_report(model: Decoder) -> KernelReport:
    """What runs for each matrix and for attention, on the device that jax computes on and with
    ROCMFORGE_KERNELS as it is.

    On a GPU this tries every kernel that the model needs, as its first use would.
    """
    entries = []
    for path, module in nnx.iter_modules(model):
        for attribute, variable in vars(module).items():
            if isinstance(variable, nnx.Variable) and len(variable.shape) > 1:
                entries += _of_weight(
                    tensor_name((*path, attribute)), variable.get_value(), model.activations
                )
    return KernelReport([*entries, *_of_attention(model)])


def _of_attention(model) -> list[Entry]:
    config, dtype = model.config, np.dtype(model.dtype)
    group = config.heads // config.kv_heads
    in_cpp = functools.partial(
        _in_cpp,
        lambda: native.require_float32(np.zeros(0, dtype)),
        "reads the slots that hold tokens",
    )
    whats = (
        (False, "one token", "reads the cache once for all heads of a group"),
        (
            True,
            "many tokens",
            "flash attention",
        ),
    )

    def on_gpu(several, what):
        return f"{what}, {kernel_target(several, group, config.head_width, dtype)}"

    def tried(*of):
        return _tried({"triton": functools.partial(on_gpu, *of), "native": in_cpp})

    return [
        Entry("attention", dtype.name, tokens, *tried(several, what))
        for several, tokens, what in whats
    ]


def _of_weight(name, weight, mode) -> list[Entry]:
    if not isinstance(weight, QTensor):
        product = Entry(name, str(weight.dtype), "product", "xla", "the weight is not packed")
        if not name.endswith("ffn_gate_inp.weight"):
            return [product]
        found = _tried(
            {"triton": lambda: f"norm, product and choice in two launches, {router_target()}"}
        )
        return [Entry(name, str(weight.dtype), "few tokens", *found), product]
    kernel, entries = weight if weight.transposed else weight.T, []
    in_cpp = functools.partial(
        _in_cpp, lambda: native.require(kernel, mode=mode), f"packed weight, {mode} activations"
    )
    whats = (
        ("few rows", f"packed weight, {mode} activations"),
        (
            "many rows",
            "matrix units; from 65 rows on dequantised first",
        ),
    )
    for operation, what in whats:
        found = _tried(
            {"triton": lambda: f"{what}, {kernels.target_of(weight, mode=mode)}", "native": in_cpp}
        )
        entries.append(Entry(name, weight.type_name, operation, *found))
    return entries


def _in_cpp(check, what) -> str:
    check()
    return f"{what}, C++, {native.instructions()}"


def _tried(implementations: dict) -> tuple[str, str]:
    """The first of `kernel_order` that can, and what it does.

    "xla", and why not what this kind of device has.
    """
    reasons = {}
    for name in kernels.kernel_order():
        try:
            if name in implementations:
                return name, implementations[name]()
        except NotImplementedError as reason:
            reasons[name] = str(reason)
    wanted = "native" if kernels.targets.current() is None else "triton"
    return "xla", reasons.get(wanted, f"ROCMFORGE_KERNELS={os.environ.get('ROCMFORGE_KERNELS')}")
