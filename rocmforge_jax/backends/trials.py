"""Tries compiled code on the device before its first use, and remembers what passed in a file.

A compiler or a driver may be wrong, so every kernel first computes a small case that is compared
with plain XLA. A trial takes half a second; a file in the user's cache folder remembers that it
passed, so that programs that start later skip it.
"""

import concurrent.futures
import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import jax


class Trials:
    """The trials of one build of some code on one kind of device."""

    def __init__(self, file: Path, device: str, remedy: str = ""):
        """Makes trials whose results are kept in a file.

        Args:
            file: Keeps a line for each trial that passed. Its name must change with everything
                that a result depends on: source, compiler, device.
            device: What the code runs on, for messages.
            remedy: What a user can do about a failure, for the warning.
        """
        self._file, self._device, self._remedy = file, device, remedy
        self._problems: dict[str, str | None] = {}

    def require(self, what: str, error: Callable[[], jax.Array], allowed: float) -> None:
        """Raises NotImplementedError for code that fails its trial, and warns once about it.

        Args:
            what: Names the code, for messages and in the file.
            error: Computes the relative error of a small case. It runs as one jitted program, and
                only if no trial of this name has passed before.
            allowed: The largest error of code that works.
        """
        if what not in self._problems:
            problem = None if self._passed_before(what) else self._try(what, error, allowed)
            self._problems[what] = problem
            if problem:
                advice = f" {self._remedy}." if self._remedy else ""
                warnings.warn(f"{problem}. Plain XLA is used instead.{advice}", stacklevel=4)
        if problem := self._problems[what]:
            raise NotImplementedError(problem)

    def _try(self, what, error, allowed) -> str | None:
        # In a thread of its own, because the caller may be tracing.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            try:
                found = float(thread.submit(jax.jit(error)).result())
            except Exception as problem:  # a compiler and a driver may raise anything
                text = f"{type(problem).__name__}: {str(problem)[:500]}"
                return f"{what} does not run on {self._device}: {text}"
        if not found <= allowed:
            return (
                f"{what} is wrong on {self._device}: its relative error is {found:.1e}, allowed"
                f" {allowed:.0e}"
            )
        self._remember(what)
        return None

    def _passed_before(self, what: str) -> bool:
        try:
            return what in self._file.read_text(errors="replace").splitlines()
        except OSError:
            return False

    def _remember(self, what: str) -> None:
        with contextlib.suppress(OSError):  # a read-only folder: every program tries again
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(f"{what}\n")
