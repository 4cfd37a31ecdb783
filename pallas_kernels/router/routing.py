"""The rule by which a router chooses and weights the experts of a token."""

import dataclasses

#: Functions from logits to scores. "softmax_of_chosen" ranks experts by their logits; the weights
#: are a softmax over the chosen experts only.
SCORINGS = ("softmax", "sigmoid", "softmax_of_chosen", "sqrt_softplus")
#: Renormalising divides by at least this sum of weights, the smallest normal float16.
SMALLEST_SUM = 2.0**-14


@dataclasses.dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighted. Hashable.

    Attributes:
        used: Number of experts per token.
        scoring: The function from logits to scores, one of SCORINGS.
        renormalize: Whether the weights of a token are divided by their sum.
        scale: The factor of the final weights; 0 leaves them unchanged, as in llama.cpp.
        groups: Number of groups of neighbouring experts. A group is ranked by the sum of its two
            best scores.
        groups_used: How many of the best groups experts are chosen from.

    Raises:
        ValueError: A value is invalid.
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
        """Raises ValueError, with the numbers, unless the rule fits a number of experts."""
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
