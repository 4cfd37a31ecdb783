"""The sampling parameters of a sequence, with their ranges."""

import dataclasses
import functools
import math
from collections.abc import Mapping

from rocmforge_jax.arguments import as_number, check_keywords, integer, number, shown

#: The largest number of recent tokens that penalties can cover.
PENALTY_WINDOW = 256
#: The largest seed: the random key consists of two 32-bit words.
MAX_SEED = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of one sequence.

    All numbers may be Python's, NumPy's or JAX's; they are stored as Python numbers. None means the
    default. Penalties, biases and temperatures beyond 3e35 are clipped to it.

    Attributes:
        temperature: 0 selects the most likely token (greedy); 1 samples from the model's own
            distribution.
        top_k: Keep the k most likely tokens; 0 keeps all.
        typical_p: Keep the tokens whose surprise is nearest to the expected one, up to this
            probability; 1 keeps all (Meister et al., 2022).
        top_p: Keep the fewest tokens whose probabilities sum to at least this; 1 keeps all.
        min_p: Drop tokens less likely than this fraction of the most likely one; 0 drops none.
        repetition_penalty: Logits of recent tokens are divided by it if positive and multiplied if
            negative; 1 changes nothing.
        presence_penalty: Subtracted from the logit of each recent token.
        frequency_penalty: Subtracted from a logit once per recent occurrence of the token.
        penalty_last_n: How many tokens of prompt and answer count as recent; at most 256.
        logit_bias: Token id -> number added to its logit; -inf bans the token.
        seed: 0 to 2**64 - 1. Equal seeds generate equal text, regardless of JAX's own random number
            generator.
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
    logit_bias: Mapping[int, float] | None = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self):
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            # A dataclass keeps the default of a field as an attribute of the class.
            value = getattr(type(self), name) if value is None else check(name, value)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "logit_bias", _checked_biases(self.logit_bias))


SamplingParams.__init__ = check_keywords(SamplingParams.__init__)

#: Field of `SamplingParams` -> function that checks a value and returns it as a Python number.
_CHECKS = {
    "temperature": functools.partial(number, low=0),
    "top_k": functools.partial(integer, low=0, high=2**31 - 1),
    "typical_p": functools.partial(number, low=0, high=1, exclusive=True),
    "top_p": functools.partial(number, low=0, high=1, exclusive=True),
    "min_p": functools.partial(number, low=0, high=1),
    "repetition_penalty": functools.partial(number, low=0, exclusive=True),
    "presence_penalty": functools.partial(number, low=-math.inf),
    "frequency_penalty": functools.partial(number, low=-math.inf),
    "penalty_last_n": functools.partial(integer, low=0, high=PENALTY_WINDOW),
    "seed": functools.partial(integer, low=0, high=MAX_SEED),
}


def _checked_biases(biases: Mapping[int, float] | None) -> dict[int, float]:
    """Returns the biases as Python numbers, or {} for None."""
    if biases is None:
        return {}
    if not isinstance(biases, Mapping):
        raise ValueError(
            f"logit_bias must map token ids to numbers, got {type(biases).__name__} {shown(biases)}"
        )
    return {
        integer("a token of logit_bias", id, 0, 2**31 - 1): _checked_bias(id, bias)
        for id, bias in biases.items()
    }


def _checked_bias(id, bias) -> float:
    found = as_number(bias)
    if found is None or not found < math.inf:
        raise ValueError(
            f"the logit_bias of token {id} must be a number or -inf, got {shown(bias)}"
        )
    return found
