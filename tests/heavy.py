"""Parameters of which some are left out unless heavy tests are asked for."""

from collections.abc import Callable, Iterable

import pytest


def some(cases: Iterable[tuple], quick: Callable[..., bool]) -> list:
    """Returns parameters for the cases; those that are not `quick(*case)` are heavy."""
    return [pytest.param(*case, marks=() if quick(*case) else pytest.mark.heavy) for case in cases]
