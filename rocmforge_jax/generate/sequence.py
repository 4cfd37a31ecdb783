"""The host's side of a text: its limits, and why it stopped."""

import collections.abc
import dataclasses
import math
from typing import Any

from rocmforge_jax.arguments import integer
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.processor import LogitsProcessor

#: Positions are int32, and the last dispatch may pass the end by a few.
MAX_CONTEXT = 2**31 - 2**10


@dataclasses.dataclass(frozen=True)
class Generated:
    """The tokens that one dispatch added to one sequence.

    Attributes:
        ids: the new tokens, without a stop token.
        logprobs: their log-probabilities under the model.
        finish_reason: None while the sequence goes on; "stop" at a stop token, "length" at
            max_tokens, "context" when the context is full.
        top_logprobs: for each token the ids and log-probabilities of the likeliest ones, in
            descending order; empty unless they were asked for.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None = None
    top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)


class Sequence:
    """A prompt and what is generated after it.

    Attributes:
        prompt: token ids, at least one.
        params: how the sequence is sampled.
        processor: its logits processor, or None.
        limit: most new tokens, by max_tokens and by the context.
        begun: new tokens that are computed or whose dispatch has begun; those past a stop token or
            past `limit` count as well.
        text: the prompt and all tokens that were read, also those past a stop token.
        finish_reason: as for `Generated`.
    """

    def __init__(
        self,
        prompt: collections.abc.Sequence[int],
        params: SamplingParams,
        *,
        context_length: int,
        max_tokens: int | None = None,
        stop_ids: collections.abc.Iterable[int] | None = None,
        processor: LogitsProcessor | None = None,
    ):
        """Makes a sequence without new tokens.

        Args:
            prompt: token ids, at least one.
            params: how to sample.
            context_length: most tokens, prompt and answer together.
            max_tokens: most new tokens, None for as many as the context holds.
            stop_ids: tokens that end the sequence.
            processor: the logits processor.
        """
        room = check_context_length(context_length) - len(prompt)
        max_tokens = None if max_tokens is None else integer("max_tokens", max_tokens, 1)
        self.prompt, self.params = list(map(int, prompt)), params
        self.processor = processor
        self.limit = room if max_tokens is None else min(room, max_tokens)
        self.begun, self.text, self.finish_reason = 0, list(self.prompt), None
        self._left = self.limit
        self._at_limit = "context" if self.limit == room and max_tokens != room else "length"
        given = () if stop_ids is None else stop_ids
        self._stop_ids = frozenset(integer("a stop id", id, 0) for id in given)

    @property
    def longest(self) -> int:
        """Tokens of the longest text that this sequence can become."""
        return len(self.prompt) + self.limit

    @property
    def wants_more(self) -> bool:
        """Whether it may need more tokens than those that are begun."""
        return self.finish_reason is None and self.begun < self.limit

    def take(
        self,
        ids: list[int],
        logprobs: list[float],
        top_ids: list[list[int]] | None = None,
        top_logprobs: list[list[float]] | None = None,
    ) -> Generated:
        """Takes in the tokens of a dispatch; returns those that belong to the sequence.

        Raises FloatingPointError if the model's logits are NaN, and ValueError if a logits
        processor left no token.
        """
        if self.finish_reason:
            return Generated([], [], self.finish_reason)
        before = len(self.text)
        self.text += ids
        ids = ids[: self._left]
        count = next((i for i, id in enumerate(ids) if id in self._stop_ids), len(ids))
        for place, logprob in enumerate(logprobs[: min(count + 1, len(ids))]):
            if math.isnan(logprob):
                raise FloatingPointError(
                    f"the model's logits after {before + place} tokens are not numbers (NaN):"
                    " weights may be damaged, or numbers too large for float16 (load with"
                    " another dtype)"
                )
        if -1 in ids[:count]:
            raise ValueError(
                f"the logits processor left no token to choose after {before + ids.index(-1)}"
                " tokens: the largest logit must be a finite number"
            )
        self._left -= count
        if count < len(ids):
            self.finish_reason = "stop"
        elif self._left == 0:
            self.finish_reason = self._at_limit
        likeliest = zip((top_ids or [])[:count], top_logprobs or [])
        top = [dict(zip(*of_one)) for of_one in likeliest]
        return Generated(ids[:count], logprobs[:count], self.finish_reason, top)


def check_context_length(context_length: Any) -> Any:
    """Returns a context length as an int, None for None, which is the model's.

    Raises ValueError unless the context can hold a prompt and an answer.
    """
    if context_length is None:
        return None
    return integer("context_length", context_length, 2, MAX_CONTEXT)
