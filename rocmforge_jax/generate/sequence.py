"""The host's side of a text: its limits, why it stopped, and what its cache is good for later."""

import collections.abc
import dataclasses

import jax
import numpy as np

from rocmforge_jax.generate.sampling import SamplingParams
from rocmforge_jax.nn import Cache

#: Tokens that a prompt must share with the last text for the cache of that text to be reused.
SMALLEST_PREFIX = 16


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


class PrefixCache:
    """The cache of the last text, for a next prompt that begins like that text."""

    def __init__(self):
        self.forget()

    def keep(self, text: list[int], cache: Cache) -> None:
        """Keeps the cache of one sequence.

        Args:
            text: its tokens. The cache may lack the last few of them, or hold some more.
            cache: of batch 1.
        """
        self._text, self._cache = text, cache

    def forget(self) -> None:
        """Drops the cache."""
        self._text, self._cache = [], None

    def common(self, prompt: collections.abc.Sequence[int]) -> int:
        """Tokens at the start of a prompt that the cache holds."""
        if self._cache is None or _is_donated(self._cache):
            return 0
        held = min(len(prompt), len(self._text), int(self._cache.lengths_B[0]))
        return next((i for i in range(held) if prompt[i] != self._text[i]), held)

    def take(self, prompt: collections.abc.Sequence[int]) -> tuple[Cache | None, int]:
        """Gives the cache away, rewound to the start of a prompt.

        Returns (cache, its tokens), or (None, 0) where less than `SMALLEST_PREFIX` tokens are
        common. At least the last token of the prompt is left to be computed.
        """
        known, cache = min(self.common(prompt), len(prompt) - 1), self._cache
        if cache is not None:
            enough = known >= SMALLEST_PREFIX
            cache = cache.rewound(int(cache.lengths_B[0]), known) if enough else None
        self.forget()
        return cache, 0 if cache is None else known


def _is_donated(cache: Cache) -> bool:
    """Whether an interrupted dispatch took the arrays of the cache with it."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


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
