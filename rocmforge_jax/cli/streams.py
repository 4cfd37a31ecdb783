"""Standard streams that are closed, full or without a reader must not confuse a command."""

import io
import os
import sys


def fill_closed() -> None:
    """Gives closed streams /dev/null, before a file or a pipe gets the number of one."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:  # `print` would write errors to stdout
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)


def prepare() -> None:
    """Makes stdout write "?" for what its encoding lacks, instead of raising an exception."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush(stream) -> str | None:
    """Writes what is left of a stream; returns why that is not possible, or None.

    What cannot be written is dropped: Python would try once more at its end, and complain. A
    reader that has gone is no reason to complain, so the answer is empty then.
    """
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return "" if isinstance(error, BrokenPipeError) else f"{stream.name}: {error.strerror}"
    return None
