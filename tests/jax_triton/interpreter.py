"""Runs the kernel in Triton's interpreter, with NumPy in place of torch and of AMD's instructions.

The instructions are computed as AMD's ISA manuals describe them (CDNA3 and RDNA3, VOP3 and VOP3P).
"""

import types

import numpy as np
from triton.runtime import interpreter

from pallas_kernels.jax_triton import kernel
from pallas_kernels.jax_triton.launch import launch


class HostArray:
    """An array as the interpreter takes it: what it asks of a tensor, and no more."""

    def __init__(self, array):
        self.array = np.array(array, order="C")
        self.dtype = self.array.dtype

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    def cpu(self):
        return self

    def new_empty(self, *_, **__):
        return HostArray(self.array[:0])

    def set_(self, storage, *_):
        self.array = storage.array

    def storage_offset(self):
        return 0

    def size(self):
        return self.array.shape

    def stride(self):
        return self.array.strides

    def copy_(self, storage):
        assert self.array is storage.array  # the kernel has written it in place


def multiply(x, weight, target, dtype="float32", tile=None):
    """Like `pallas_kernels.jax_triton.multiply` of Activations."""
    work = launch(x, weight, target, tile)
    out = HostArray(np.full((x.rows, weight.rows), np.nan, dtype))
    kernel.multiply[work.grid](*map(HostArray, work.arrays), out, **work.constants)
    return out.array


def emulate_instructions(monkeypatch):
    """Let the interpreter run inline assembly of the instructions in `_INSTRUCTIONS`."""
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_inline_asm", _run)


def _run(self, assembly, constraints, values, kinds, pure, pack):
    name, *modifiers = assembly.replace(" $0, $1, $2, $3", "").split(maxsplit=1)
    words = [value.data.view(np.uint32) for value in values]
    (kind,) = kinds
    numbers = np.dtype(interpreter._get_np_dtype(kind))
    result = _INSTRUCTIONS[name](*words, *modifiers).view(numbers)
    handle = interpreter.TensorHandle(result, kind.scalar)
    return types.SimpleNamespace(get_result=lambda _: handle)


def _bytes(words):
    return np.ascontiguousarray(words)[..., None].view(np.uint8)


def _dot4(a, b, c, signed):
    kinds = [np.int8 if one else np.uint8 for one in signed]
    a, b = (_bytes(word).view(kind).astype(np.int64) for word, kind in zip((a, b), kinds))
    return ((a * b).sum(axis=-1) + c.view(np.int32)).astype(np.int32)


def _dot4_i32_i8(a, b, c):
    return _dot4(a, b, c, (True, True))


def _dot4_i32_iu8(a, b, c, modifier=""):
    """Operands are unsigned bytes, or signed where `neg_lo` is 1."""
    signed = [bit == "1" for bit in modifier.removeprefix("neg_lo:[").split(",")[:2]]
    return _dot4(a, b, c, signed if modifier else (False, False))


def _perm_b32(high, low, selectors):
    """Bytes 0 to 3 of the eight are those of the second operand."""
    eight = np.concatenate([_bytes(low), _bytes(high)], axis=-1)
    chosen = np.take_along_axis(eight, _bytes(selectors).astype(np.int64), axis=-1)
    return chosen.view(np.uint32)[..., 0]


_INSTRUCTIONS = {
    "v_dot4_i32_i8": _dot4_i32_i8,
    "v_dot4_i32_iu8": _dot4_i32_iu8,
    "v_perm_b32": _perm_b32,
}
