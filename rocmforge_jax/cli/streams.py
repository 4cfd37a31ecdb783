"""Handles standard streams that are closed, full or without a reader."""

import io
import os
import sys


def fill_closed() -> None:
    """Opens /dev/null for closed streams, before a file or pipe gets one of their numbers."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:  # `print` would write errors to stdout
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)


def prepare() -> None:
    """Makes stdout print "?" for characters outside its encoding, instead of raising an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def flush(stream) -> str | None:
    """Flushes a stream.

    If that fails, the rest is dropped, because Python would otherwise try again at exit and print
    an error.

    Returns:
        The reason of a failure; "" if only the reader has exited; None for success.
    """
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return "" if isinstance(error, BrokenPipeError) else f"{stream.name}: {error.strerror}"
    return None
