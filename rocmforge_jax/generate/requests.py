"""Checks the arguments of a request to an engine and creates its sequences."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rocmforge_jax.arguments import shown
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.processor import check_processor, each_processor
from rocmforge_jax.generate.sequence import Sequence


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a model and its engine for a sequence.

    Attributes:
        context_length: The maximum number of tokens of a sequence.
        vocabulary: The number of token ids.
        suppressed_ids: Tokens that are never generated.
    """

    context_length: int
    vocabulary: int
    suppressed_ids: frozenset[int] = frozenset()

    def sequences(
        self,
        prompts: Iterable,
        params: Any,
        max_tokens: Any,
        stop_ids: Iterable | None,
        logits_processor: Any = None,
        samples: int = 1,
    ) -> list[Sequence]:
        """Returns the sequences of a request; see `Engine.generate` for the arguments.

        The sequences of one prompt are consecutive.

        Raises:
            ValueError: The request is invalid; the message contains the numbers.
        """
        prompts = self.prompts(prompts)
        if not prompts:
            raise ValueError("generate needs at least one prompt, got none")
        stop_ids = None if stop_ids is None else list(stop_ids)
        processors = each_processor(logits_processor, len(prompts))
        if processors[0] is not None:
            check_processor(processors[0], self.vocabulary)
        return [
            Sequence(
                prompt,
                one,
                name=name,
                context_length=self.context_length,
                max_tokens=max_tokens,
                stop_ids=stop_ids,
                processor=processor,
            )
            for name, prompt, one, processor in zip(
                _each_repeated(_names("prompt", len(prompts)), samples),
                _each_repeated(prompts, samples),
                self._params(params, len(prompts) * samples),
                _each_repeated(processors, samples),
            )
        ]

    def prompts(self, prompts: Iterable) -> list[list[int]]:
        """Returns the ids of each prompt; raises ValueError for one that is invalid."""
        listed = list(prompts)
        names = _names("prompt", len(listed))
        return [self.prompt(name, prompt) for name, prompt in zip(names, listed)]

    def ids(self, ids_BT) -> np.ndarray:
        """Returns ids of several texts of one length.

        Args:
            ids_BT: Token ids, [B, T].

        Raises:
            ValueError: It is no array of integers with two axes, T is below 2 or beyond the
                context, or an id is outside the vocabulary.
        """
        ids = np.asarray(ids_BT)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be integers [B, T], got {ids.dtype} {list(ids.shape)}")
        if not 2 <= ids.shape[1] <= self.context_length:
            raise ValueError(
                f"ids must have from 2 to {self.context_length} tokens each, the context, got"
                f" {list(ids.shape)}"
            )
        self._check_ids("ids", ids)
        return ids

    def _check_ids(self, name: str, ids: np.ndarray) -> None:
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocabulary:
            raise ValueError(
                f"{name} has the id {low if low < 0 else high}, the vocabulary has"
                f" {self.vocabulary}"
            )

    def prompt(self, name: str, prompt) -> list[int]:
        """Returns the ids of a prompt.

        Args:
            name: The name of the prompt in messages.
            prompt: Token ids.

        Raises:
            ValueError: The prompt is empty, too long, or contains something other than valid ids.
        """
        if isinstance(prompt, Iterator):
            prompt = list(prompt)
        ids = np.asarray(prompt)
        if ids.ndim == 1 and ids.dtype == object and all(isinstance(id, int) for id in prompt):
            self._check_ids(name, ids)  # integers of more than 64 bits
        if ids.ndim != 1 or len(ids) and not np.issubdtype(ids.dtype, np.integer):
            axes = f", {ids.ndim} axes" if ids.ndim != 1 else ""
            raise ValueError(f"{name} must be token ids, integers, got {ids.dtype}{axes}")
        if not len(ids):
            raise ValueError(f"{name} is empty: generation needs at least one token")
        if len(ids) >= self.context_length:
            raise ValueError(
                f"{name} has {len(ids)} tokens, the context is {self.context_length} with"
                " at least one for the answer: shorten it, or raise context_length"
            )
        self._check_ids(name, ids)
        return ids.tolist()

    def _params(self, params, count: int) -> list[SamplingParams]:
        params = SamplingParams() if params is None else params
        each = [params] * count if isinstance(params, SamplingParams) else list(params)
        if len(each) != count:
            raise ValueError(f"{count} prompts need as many sampling parameters, got {len(each)}")
        for name, one in zip(_names("params", count), each):
            if not isinstance(one, SamplingParams):
                raise ValueError(f"{name} must be SamplingParams, got {shown(one)}")
        for name, one in zip(_names("logit_bias", count), each):
            self._check_biases(name, one.logit_bias or {})
        return each

    def _check_biases(self, name: str, biases: Mapping[int, float]):
        if (highest := max(biases, default=0)) >= self.vocabulary:
            raise ValueError(f"{name} has the id {highest}, the vocabulary has {self.vocabulary}")
        left = self.vocabulary - len(self.suppressed_ids)
        if len(biases) < left:
            return
        banned = {id for id, bias in biases.items() if bias == -math.inf}
        if len(banned - self.suppressed_ids) == left:
            raise ValueError(f"{name} bans all {left} tokens that the model may generate")


def _each_repeated(values: list, count: int) -> list:
    return [value for value in values for _ in range(count)]


def _names(argument: str, count: int) -> list[str]:
    """Returns names for the entries of an argument in messages; a single one has no number."""
    return [argument] if count == 1 else [f"{argument} {number}" for number in range(count)]
