"""Chooses the backend that computes an operation, both for the computation and for reports.

Three backends exist, tried in this order: "pallas" (kernels for GPUs), "cpp" (C++ for CPUs) and
"xla" (plain jax.numpy, which can compute everything).
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping

from rocmforge_jax.settings import BACKENDS


class BackendError(NotImplementedError):
    """The backend that a caller demands cannot compute an operation."""


class WrongDevice(NotImplementedError):
    """A backend does not run on the kind of device that JAX computes on."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that several backends can compute.

    Attributes:
        name: What reports call the operation.
        checks: Maps "pallas" and "cpp" to functions of the operands. A check returns a description
            of what the backend does, or raises NotImplementedError with the reason why the backend
            cannot compute these operands. A backend without a check never computes the operation.
            Plain XLA needs no check.
        fused: Whether the operation only combines others. Then "xla" means that these are computed
            one by one, each with its own choice. If the backend that the caller demands cannot
            compute a fused operation, this is not an error.
        note: The reason that is reported if XLA computes the operation and no backend for this kind
            of device has a check. None: the reasons of the other backends, if there are any.
    """

    name: str
    checks: Mapping[str, Callable[..., str]] = dataclasses.field(default_factory=dict)
    fused: bool = False
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """The backend that computes an operation, and the reason.

    The reason is what the backend does, or for XLA, why no other backend computes the operation.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Decision:
    """The arguments and the result of a call of `choose`, as collected by `record`."""

    operation: Operation
    operands: tuple
    choice: Choice


def check_name(backend: str | None) -> str:
    """Returns "auto" for None and the name itself otherwise; raises ValueError for other names."""
    if backend is not None and backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    return backend or "auto"


def choose(operation: Operation, operands: tuple, wanted: str | None = None) -> Choice:
    """Chooses the backend of an operation.

    Args:
        operation: The operation to compute.
        operands: The arguments of the operation's checks, which read only shapes, dtypes and
            layouts.
        wanted: The backend to use. None or "auto": the first one that can compute the operation.

    Returns:
        The backend and the reason.

    Raises:
        ValueError: `wanted` is not the name of a backend.
        BackendError: The wanted backend has a check for the operation, but cannot compute these
            operands, and the operation is not fused. If the backend has no check, XLA computes the
            operation.
    """
    wanted, reasons = check_name(wanted), {}
    for name in BACKENDS if wanted == "auto" else (wanted,):
        if name not in operation.checks:
            continue
        try:
            return _recorded(operation, operands, Choice(name, operation.checks[name](*operands)))
        except NotImplementedError as reason:
            reasons[name] = reason
    if wanted in reasons and not operation.fused:
        reason = reasons[wanted]
        named = "" if isinstance(reason, WrongDevice) else f"{wanted}: "  # its message has it
        raise BackendError(
            f"{operation.name}: {named}{reason}; the backend 'auto' takes the first that can"
        )
    return _recorded(operation, operands, Choice("xla", _why_xla(operation, wanted, reasons)))


def _why_xla(operation, wanted, reasons) -> str:
    if wanted == "xla" and operation.checks:
        return "the backend xla is asked for"
    if wanted != "auto" and operation.checks and wanted not in operation.checks:
        return f"{wanted} has no code for {operation.name}"
    # On a GPU, it does not matter why C++ is not used; on a CPU, why GPU kernels are not.
    of_this_device = [str(r) for r in reasons.values() if not isinstance(r, WrongDevice)]
    if operation.note and not of_this_device:
        return operation.note
    why = of_this_device or list(map(str, reasons.values()))
    return "; ".join(why) or "no other backend computes this"


_decisions: contextvars.ContextVar[list[Decision] | None] = contextvars.ContextVar(
    "decisions", default=None
)


@contextlib.contextmanager
def record() -> Iterator[list[Decision]]:
    """Collects the decisions of all calls of `choose` inside the context, in order."""
    token = _decisions.set(decisions := [])
    try:
        yield decisions
    finally:
        _decisions.reset(token)


def recording() -> bool:
    """Returns whether decisions are being recorded; if so, traces must not be reused."""
    return _decisions.get() is not None


def _recorded(operation, operands, choice):
    if (decisions := _decisions.get()) is not None:
        decisions.append(Decision(operation, operands, choice))
    return choice
