"""Chooses the backend for a single token of a recurrence with one matrix per head."""

import dataclasses
from collections.abc import Callable

import jax

from rocmforge_jax.backends import Operation, choose, cpp, differentiable
from rocmforge_jax.backends.on_mesh import require_one_device


def _check_cpp(memory_BNHW) -> str:
    used = cpp.instructions()
    require_one_device()
    return f"reads and writes the memory once, in place, C++ with {used}"


@dataclasses.dataclass(frozen=True)
class RecurrentStep:
    """One token of a recurrence as a function of arrays: in C++ and in plain XLA.

    Attributes:
        name: The name of the operation in reports.
        in_cpp: The C++ implementation: (*token, memory) -> (outputs, memory).
        plain: The jax.numpy implementation: (token, memory) -> (outputs, memory).
    """

    name: str
    in_cpp: Callable
    plain: Callable

    def __call__(self, token: tuple[jax.Array, ...], memory_BNHW):
        """Computes the step in C++."""
        return self.in_cpp(*token, memory_BNHW)

    def on(self, backend: str | None, token: tuple[jax.Array, ...], memory_BNHW):
        """Computes the step on `backend`; None: on the first backend that supports it."""
        operation = Operation(self.name, {"cpp": _check_cpp})
        if choose(operation, (memory_BNHW,), backend).name == "cpp":
            return differentiable(self, token, memory_BNHW)
        return self.plain(token, memory_BNHW)
