"""Chooses the backend of a single token of a recurrence whose heads each keep a matrix."""

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
    """A token of a recurrence as a function of arrays, in C++ and in plain XLA.

    Attributes:
        name: What reports call it.
        in_cpp: Takes the parts of the token and the memory -> the outputs, the memory.
        plain: Takes the token, as a tuple, and the memory, and computes the same with jax.numpy.
    """

    name: str
    in_cpp: Callable
    plain: Callable

    def __call__(self, token: tuple[jax.Array, ...], memory_BNHW):
        """Computes the step in C++."""
        return self.in_cpp(*token, memory_BNHW)

    def on(self, backend: str | None, token: tuple[jax.Array, ...], memory_BNHW):
        """Computes the step on the first backend that can, or on the one that is wanted."""
        operation = Operation(self.name, {"cpp": _check_cpp})
        if choose(operation, (memory_BNHW,), backend).name == "cpp":
            return differentiable(self, token, memory_BNHW)
        return self.plain(token, memory_BNHW)
