"""How one sequence is sampled: the parameters and their ranges. Computes nothing."""

import dataclasses
import math
from collections.abc import Mapping

#: Most tokens that the penalties can look back on.
PENALTY_WINDOW = 256


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one sequence is sampled.

    temperature: 0 takes the likeliest token (greedy); 1 samples the model's own distribution.
    top_k: keep the k likeliest tokens, 0 keeps all. typical_p: keep the tokens whose surprise is
    nearest the expected one, up to this probability, 1 keeps all (Meister et al., 2022). top_p:
    keep the fewest tokens whose probabilities sum to at least this, 1 keeps all. min_p: drop tokens
    less likely than this share of the likeliest, 0 drops none.

    repetition_penalty: logits of tokens among the last `penalty_last_n` (prompt and answer; at most
    256) are divided by it where positive and multiplied where negative, 1 for none.
    presence_penalty, frequency_penalty: subtracted once, and once for each time the token is there.
    logit_bias: token id -> number added to its logit; -inf bans it.

    seed: 0 to 2**32 - 1; equal seeds give equal text.
    """

    temperature: float = 0.8
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        _check_number("temperature", self.temperature, 0)
        _check_number("min_p", self.min_p, 0, 1)
        for name in ("top_p", "typical_p"):
            _check_number(name, getattr(self, name), 0, 1, exclusive=True)
        _check_number("repetition_penalty", self.repetition_penalty, 0, exclusive=True)
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name), -math.inf)
        for name, high in (
            ("top_k", 2**31 - 1),
            ("seed", 2**32 - 1),
            ("penalty_last_n", PENALTY_WINDOW),
        ):
            _check_integer(name, getattr(self, name), high)
        for id, bias in self.logit_bias.items():
            _check_integer("a token of logit_bias", id, 2**31 - 1)
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not bias < math.inf:
                raise ValueError(
                    f"the logit_bias of token {id} must be a number or -inf, got {bias!r}"
                )


def _check_number(name, value, low, high=math.inf, *, exclusive=False):
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or exclusive and value == low:
        bounds = [f"above {low}" if exclusive else f"of at least {low}"] if low > -math.inf else []
        bounds += [f"at most {high}"] if high < math.inf else []
        raise ValueError(
            f"{name} must be a finite number {' and '.join(bounds)}".rstrip() + f", got {value!r}"
        )


def _check_integer(name, value, high):
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise ValueError(f"{name} must be an integer from 0 to {high}, got {value!r}")
