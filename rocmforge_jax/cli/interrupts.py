"""Ends the process at once, and quietly, on Ctrl-C and on SIGTERM.

Python raises KeyboardInterrupt in whatever line happens to run. In a destructor or a callback the
exception is printed and lost, a library that is being imported may wrap it, and it waits for C++
to return. A thread that reads the signals needs none of these lines.
"""

import _thread
import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping

#: Exit codes, those that shells report.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_ending = _thread.allocate_lock()


def end_at_once() -> None:
    """Makes both signals end this process, unless it was started with them ignored.

    Other threads than the main one cannot set that, and change nothing.
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
        # What is registered first runs last: nothing is left to interrupt then, and Python would
        # restore the system's way of ending.
        atexit.register(_ignore, handled)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Lets signals raise inside, for code that cleans up: KeyboardInterrupt and SystemExit."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda number, _: sys.exit(CODES[number]),
    }
    with _replaced(handlers):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Collects Ctrl-C inside in a list, for code that looks at it; the second one ends the process.

    In a process in which `end_at_once` was not called, KeyboardInterrupt is raised as ever.
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
    with contextlib.suppress(RuntimeError):  # no more threads: the main one ends the process, later
        _thread.start_new_thread(_watch, (reading,))


def _watch(reading: int):
    """Ends the process while the main thread is in C++."""
    while True:
        for number in os.read(reading, 64):
            if signal.getsignal(number) is _end:
                _end(number)


def _end(number: int, _=None):
    if not _ending.acquire(blocking=False):  # the other thread is about to
        return
    if number == signal.SIGINT:  # a terminal shows ^C, and the prompt belongs on its own line
        with contextlib.suppress(OSError):
            os.write(2, b"\n")
    os._exit(CODES[signal.Signals(number)])


def _ignore(numbers):
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
