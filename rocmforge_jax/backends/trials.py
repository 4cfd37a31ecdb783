"""Tries compiled code on the device before its first use, and saves the successes to a file.

A compiler or a driver may have bugs. So every kernel first computes a small case, which is compared
with plain XLA. A file in the user's cache folder lists the trials that
passed, so that later processes skip them.
"""

import concurrent.futures
import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp


class Trials:
    """Tries pieces of code of one build on one kind of device, and records which ones pass."""

    def __init__(self, file: Path, device: str, remedy: str = ""):
        """Creates trials whose results are saved to a file.

        Args:
            file: The file, with a line for each trial that passed. Its name must change with
                everything that a result depends on: source, compiler, device.
            device: The name of the device, for messages.
            remedy: Advice to users about a failure, for the warning.
        """
        self._file, self._device, self._remedy = file, device, remedy
        self._problems: dict[str, str | None] = {}

    def require(self, what: str, error: Callable[[], jax.Array], allowed: float) -> None:
        """Raises NotImplementedError for code that fails its trial, and warns once about it.

        Args:
            what: The name of the code, for messages and for the file.
            error: A function that computes the relative error of a small case. It runs as one
                jitted program, and only if no trial of this name has passed before.
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
        # Runs in another thread, because the caller may be tracing.
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


def relative_error(found, exact) -> jax.Array:
    """Returns the largest relative L2 error of the arrays of a pytree."""

    def error(a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.linalg.norm(a - b) / jnp.linalg.norm(b)

    return jnp.stack(jax.tree.leaves(jax.tree.map(error, found, exact))).max()
