"""The host's side of a text: its limits, and why it stopped."""

import collections.abc
import dataclasses

import numpy as np

from rocmforge_jax.generate.params import SamplingParams

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
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None = None


class Sequence:
    """A prompt and what is generated after it.

    Attributes:
        prompt: token ids, at least one.
        params: how the sequence is sampled.
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
        stop_ids: collections.abc.Set[int] = frozenset(),
    ):
        room = context_length - len(prompt)
        self.prompt, self.params = list(map(int, prompt)), params
        self.limit = room if max_tokens is None else min(room, max_tokens)
        self.begun, self.text, self.finish_reason = 0, list(self.prompt), None
        self._left = self.limit
        self._at_limit = "context" if self.limit == room and max_tokens != room else "length"
        self._stop_ids = stop_ids

    @property
    def longest(self) -> int:
        """Tokens of the longest text that this sequence can become."""
        return len(self.prompt) + self.limit

    @property
    def wants_more(self) -> bool:
        """Whether it may need more tokens than those that are begun."""
        return self.finish_reason is None and self.begun < self.limit

    def take(self, ids: list[int], logprobs: list[float]) -> Generated:
        """Takes in the tokens of a dispatch; returns those that belong to the sequence."""
        if self.finish_reason:
            return Generated([], [], self.finish_reason)
        self.text += ids
        ids = ids[: self._left]
        count = next((i for i, id in enumerate(ids) if id in self._stop_ids), len(ids))
        self._left -= count
        if count < len(ids):
            self.finish_reason = "stop"
        elif self._left == 0:
            self.finish_reason = self._at_limit
        return Generated(ids[:count], logprobs[:count], self.finish_reason)


def check_requests(
    prompts: collections.abc.Sequence[collections.abc.Sequence[int]],
    params: collections.abc.Sequence[SamplingParams],
    max_tokens: int | None,
    *,
    context_length: int,
    vocabulary: int,
) -> None:
    """Raises ValueError, with the numbers, for requests that cannot be computed."""
    if not len(prompts):
        raise ValueError("generate needs at least one prompt, got none")
    if len(params) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts need as many sampling parameters, got {len(params)}"
        )
    if max_tokens is not None and (
        isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1
    ):
        raise ValueError(f"max_tokens must be an integer of at least 1, got {max_tokens!r}")
    for number, prompt in enumerate(prompts):
        _check_prompt(number, prompt, context_length, vocabulary)
    for number, one in enumerate(params):
        if (highest := max(one.logit_bias, default=0)) >= vocabulary:
            raise ValueError(
                f"logit_bias {number} has the id {highest}, the vocabulary has {vocabulary}"
            )


def _check_prompt(number, prompt, context_length, vocabulary):
    if not len(prompt):
        raise ValueError(f"prompt {number} is empty: generation needs at least one token")
    if len(prompt) >= context_length:
        raise ValueError(
            f"prompt {number} has {len(prompt)} tokens, the context is {context_length} with at"
            " least one for the answer"
        )
    if not np.issubdtype(np.asarray(prompt).dtype, np.integer):
        raise ValueError(
            f"prompt {number} must be token ids, integers, got {np.asarray(prompt).dtype}"
        )
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"prompt {number} has the id {low if low < 0 else high}, the vocabulary has"
            f" {vocabulary}"
        )


def check_context_length(context_length: int | None) -> None:
    """Raises ValueError unless a context can hold a prompt and an answer; None is the model's."""
    if context_length is None:
        return
    if isinstance(context_length, bool) or not isinstance(context_length, int | np.integer):
        raise ValueError(f"context_length must be an integer, got {context_length!r}")
    if not 2 <= context_length <= MAX_CONTEXT:
        raise ValueError(
            f"context_length must be at least 2 and at most {MAX_CONTEXT}, got {context_length}"
        )
