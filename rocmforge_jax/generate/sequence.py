"""The state of one sequence on the host: its limits, its tokens and why it stopped."""

import collections.abc
import dataclasses
import math
from typing import Any

from rocmforge_jax.arguments import integer
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.processor import LogitsProcessor

#: The longest context. Positions are int32, and the last dispatch may exceed the end by a few.
MAX_CONTEXT = 2**31 - 2**10


@dataclasses.dataclass(frozen=True)
class Generated:
    """The tokens that one dispatch added to one sequence.

    Attributes:
        ids: The new tokens, without a stop token.
        logprobs: Their log-probabilities under the model.
        finish_reason: None while the sequence continues; "stop" at a stop token or after
            `Generation.stop`, "length" at max_tokens, "context" if the context is full.
        top_logprobs: For each token, the ids and log-probabilities of the most likely tokens, in
            descending order; empty unless requested.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None = None
    top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)


class Sequence:
    """A prompt and the tokens generated after it.

    Attributes:
        prompt: Token ids, at least one.
        name: The name of the prompt in messages.
        params: The sampling parameters.
        processor: The logits processor, or None.
        limit: The maximum number of new tokens, from max_tokens and the context.
        begun: The number of new tokens whose dispatch has started, including those past a stop
            token or past `limit`.
        text: The prompt and all tokens read so far, including those past a stop token.
        finish_reason: As in `Generated`.
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
        name: str = "prompt",
    ):
        """Creates a sequence without new tokens.

        Args:
            prompt: Token ids, at least one.
            params: The sampling parameters.
            context_length: The maximum number of tokens of prompt and answer together.
            max_tokens: The maximum number of new tokens; None for all that the context allows.
            stop_ids: Tokens that end the sequence.
            processor: The logits processor.
            name: The name of the prompt in messages.
        """
        self.name = name
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
        """The maximum number of tokens of prompt and answer."""
        return len(self.prompt) + self.limit

    @property
    def wants_more(self) -> bool:
        """Whether the sequence may need more tokens than those already started."""
        return self.finish_reason is None and self.begun < self.limit

    def stop(self) -> None:
        """Ends the sequence, unless it has ended already. The finish reason is "stop"."""
        self.finish_reason = self.finish_reason or "stop"

    def take(
        self,
        ids: list[int],
        logprobs: list[float],
        top_ids: list[list[int]] | None = None,
        top_logprobs: list[list[float]] | None = None,
    ) -> Generated:
        """Appends the tokens of a dispatch and returns those that belong to the sequence.

        Args:
            ids: The tokens.
            logprobs: Their log-probabilities.
            top_ids: The most likely tokens at each position.
            top_logprobs: Their log-probabilities.

        Raises:
            FloatingPointError: The model's logits are NaN.
            ValueError: A logits processor left no token.
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
                    f"{self.name}: the model's logits after {before + place} tokens are not numbers"
                    " (NaN): weights may be damaged, or numbers too large for float16 (load with"
                    " another dtype)"
                )
        if -1 in ids[:count]:
            raise ValueError(
                f"{self.name}: the logits processor left no token to choose after"
                f" {before + ids.index(-1)} tokens: the largest logit must be a finite number"
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
    """Returns a context length as an int. None, for the model's own length, stays None.

    Raises:
        ValueError: The context is too short for a prompt and an answer, or too long.
    """
    if context_length is None:
        return None
    return integer("context_length", context_length, 2, MAX_CONTEXT)
