"""Progress bars: a widget in a notebook, text on stderr elsewhere."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from tqdm import TqdmWarning

from rocmforge_jax.arguments import flag

with warnings.catch_warnings():
    # Without ipywidgets the bar of a notebook is text, which needs no warning.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

#: Seconds that a widget waits: what is quicker needs none.
WIDGET_DELAY = 1


def progress_bar(*iterable: Any, progress: bool | None, **options: Any) -> tqdm:
    """Makes a bar.

    Args:
        iterable: What the bar counts, or nothing for a bar that is updated by hand.
        progress: Whether to show it. None: in a notebook if there is something to wait for, and if
            stderr is a terminal.
        options: Those of tqdm.
    """
    if progress is not None:
        progress = flag("progress", progress)
    if progress is None and is_widget():
        options["delay"] = max(WIDGET_DELAY, options.get("delay", 0))
    disable = None if progress is None else not progress
    return tqdm(*iterable, disable=disable, **options)


def updates(bar: tqdm) -> Callable[[int, int], None]:
    """Returns a function of (units done, units in all) that moves a bar without a total."""

    def update(done: int, total: int) -> None:
        if bar.total is None:
            bar.reset(total)  # the only way to give a widget a total
        bar.update(done - bar.n)

    return update


def note(bar: tqdm, text: str) -> None:
    """Writes a line beside a bar, unless the bar is hidden or waits to be needed."""
    if not (bar.disable or bar.delay):
        bar.write(text, file=sys.stdout if is_widget() else sys.stderr)


def is_widget() -> bool:
    """Returns whether bars are widgets of a notebook."""
    return any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
