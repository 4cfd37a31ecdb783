"""How a router chooses the experts of a token, as one value."""

import dataclasses

#: From logits to scores; "softmax_of_chosen" has logits for scores, and weights that are a softmax
#: over the chosen experts alone.
SCORINGS = ("softmax", "sigmoid", "softmax_of_chosen", "sqrt_softplus")
#: The least sum of weights that renormalising divides by: the smallest normal float16.
SMALLEST_SUM = 2.0**-14


@dataclasses.dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighted. Hashable.

    Attributes:
        used: Experts of a token.
        scoring: What turns logits into scores, one of SCORINGS.
        renormalize: Whether the weights of a token are divided by their sum.
        scale: Multiplies the weights in the end; 0 leaves them unchanged, as in llama.cpp.
        groups: Groups of neighbouring experts. Those with the largest sum of their two best scores
            are kept.
        groups_used: How many groups are kept.

    Raises:
        ValueError: A value makes no sense.
    """

    used: int
    scoring: str
    renormalize: bool
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1

    def __post_init__(self):
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring is {', '.join(SCORINGS)}, got {self.scoring!r}")
        if self.used < 1:
            raise ValueError(f"a token uses at least 1 expert, got {self.used}")
        if not 1 <= self.groups_used <= self.groups:
            raise ValueError(f"{self.groups_used} groups of experts are used, of {self.groups}")

    def check(self, experts: int) -> None:
        """Raises ValueError, with the numbers, unless it fits a number of experts."""
        if self.used > experts:
            raise ValueError(f"{self.used} experts are used, there are {experts}")
        if self.groups == 1:
            return
        in_a_group, rest = divmod(experts, self.groups)
        if rest or in_a_group < 2:
            raise ValueError(
                f"{experts} experts in {self.groups} groups: each group needs the same number, at"
                " least 2"
            )
        if self.used > (kept := self.groups_used * in_a_group):
            raise ValueError(f"{self.used} experts are used, the groups that are used have {kept}")
