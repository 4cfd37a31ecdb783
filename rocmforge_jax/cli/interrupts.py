"""Ends the process at once, without a traceback, on Ctrl-C and on SIGTERM.

Python's default is to raise KeyboardInterrupt in the line that happens to run. In a destructor or a
callback the exception is printed and lost. A library that is being imported may wrap it. And it
waits until C++ returns. A thread that reads the signals has none of these problems.
"""

import _thread
import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping

#: Signal -> exit code, the same as shells report.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_ending = _thread.allocate_lock()


def end_at_once() -> None:
    """Makes both signals end this process, unless it was started with them ignored.

    Outside the main thread it has no effect.
    """
    handled = [
        number
        for number in CODES
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    ]
    try:
        for number in handled:
            signal.signal(number, _end)
    except ValueError:  # not the main thread
        return
    if handled:
        _watch_in_a_thread()
        # Registered first, so it runs last, when nothing is left to interrupt. Python would then
        # restore the system's default handling.
        atexit.register(_ignore, handled)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Makes signals raise KeyboardInterrupt or SystemExit inside, for code that cleans up."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda number, _: sys.exit(CODES[number]),
    }
    with _replaced(handlers):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Records Ctrl-C in a list, for code that polls the list. A second Ctrl-C ends the process.

    If `end_at_once` was not called, KeyboardInterrupt is raised as usual.
    """
    arrived = []

    def note(number, _):
        arrived.append(number)
        signal.signal(number, _end)

    with _replaced({signal.SIGINT: note}):
        yield arrived


@contextlib.contextmanager
def _replaced(handlers: Mapping[signal.Signals, Callable]) -> Iterator[None]:
    ours = [number for number in handlers if signal.getsignal(number) is _end]
    for number in ours:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, _end)


def _watch_in_a_thread():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    with contextlib.suppress(RuntimeError):  # thread limit reached: the main thread ends, later
        _thread.start_new_thread(_watch, (reading,))


def _watch(reading: int):
    """Ends the process even while the main thread runs C++."""
    while True:
        for number in os.read(reading, 64):
            if signal.getsignal(number) is _end:
                _end(number)


def _end(number: int, _=None):
    if not _ending.acquire(blocking=False):  # the other thread is already ending the process
        return
    if number == signal.SIGINT:  # a terminal shows ^C, so start a new line for the shell's prompt
        with contextlib.suppress(OSError):
            os.write(2, b"\n")
    os._exit(CODES[signal.Signals(number)])


def _ignore(numbers):
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
