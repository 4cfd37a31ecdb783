"""A problem of a machine, as `doctor` reports it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of a machine.

    Attributes:
        what: What is wrong, or may go wrong.
        remedy: What to do.
        certain: Whether the problem was found here; otherwise it is known of similar machines.
    """

    what: str
    remedy: str
    certain: bool = True
