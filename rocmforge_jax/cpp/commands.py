"""Runs compilers in parallel, and reports their failures as errors."""

import contextlib
import os
import shlex
import signal
import subprocess
import time

#: How many of the last lines of a compiler's output an error message contains.
_LAST_LINES = 5


class BuildError(RuntimeError):
    """The C++ library cannot be built; the message has the reason."""


def run(commands: list[list[str]], seconds: float) -> list[str]:
    """Runs commands in parallel and returns the standard output of each.

    When this function returns or raises, all commands and the processes they started have ended.

    Args:
        commands: Programs with their arguments.
        seconds: The time limit for all commands together.

    Raises:
        BuildError: A command cannot be started, fails or takes too long. After a failure, the
            message contains the last lines that the command printed.
    """
    running, printed = [], []
    try:
        for command in commands:
            running.append(_started(command))
        end = time.monotonic() + seconds
        for process in running:
            printed.append(_printed(process, end - time.monotonic(), seconds))
    finally:
        for process in running:
            _stop(process)
    for process, (out, err) in zip(running, printed):
        _require_success(process, f"{out}\n{err}")
    return [out for out, _ in printed]


def succeeds(command: list[str], seconds: float) -> bool:
    """Returns whether a command ends with exit code 0 within the time limit."""
    try:
        run([command], seconds)
    except BuildError:
        return False
    return True


def _started(command):
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # a compiler has child processes, which `_stop` must also end
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be started: {error.strerror}") from error


def _printed(process, left, seconds):
    try:
        return process.communicate(timeout=max(left, 0))
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"{shlex.join(process.args[:2])} did not end within {seconds:.0f} s"
        ) from None


def _stop(process):
    """Ends a command that may still be running, and the processes that it started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate()


def _require_success(process, text):
    code = process.returncode
    if code == 0:
        return
    lines = text.strip().splitlines()[-_LAST_LINES:]
    how = f"failed with exit code {code}" if code > 0 else f"was ended by {_signal(-code)}"
    raise BuildError("\n".join([f"{process.args[0]} {how}{':' if lines else ''}", *lines]))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
