"""The keyword arguments that generating methods share, with their types.

`check_keywords(..., options=...)` adds them to the signature that editors and `help` show.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.processor import LogitsProcessor
from rocmforge_jax.generate.prompt_cache import PromptCache

#: The type of `logits_processor=` for one prompt.
Processor = LogitsProcessor | Callable[..., tuple[Any, Any]]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`; None means the default."""

    temperature: float | None
    top_k: int | None
    typical_p: float | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_last_n: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class AnswerOptions(TypedDict, total=False):
    """Options of an answer other than its length and single sampling parameters.

    Attributes:
        stop: Strings that end the text and are left out of it.
        params: `SamplingParams` in place of single parameters: one for all prompts, or one for each
            prompt of a list.
        logits_processor: A jittable function that changes logits before a token is sampled, on the
            device, or a `LogitsProcessor` with an initial state. One for all prompts, or one for
            each prompt of a list, with the same function.
        best_of: How many answers to generate per prompt. The `n` with the highest mean
            log-probability are returned, best first. Default: n.
        top_logprobs: How many of the most likely tokens to return with each chosen one. Their
            log-probabilities refer to the model's own distribution.
        cache: The computed prefix of the prompts, from `LanguageModel.cache`.
        progress: Whether to show a bar on stderr that counts finished answers. Default: if stderr
            is a terminal, for several answers that take more than a few seconds. A stream has none.
    """

    stop: str | Iterable[str] | None
    params: SamplingParams | Iterable[SamplingParams] | None
    logits_processor: Processor | Iterable[Processor] | None
    best_of: int | None
    top_logprobs: int | None
    cache: PromptCache | None
    progress: bool | None


class GenerateOptions(AnswerOptions, SamplingOptions, total=False):
    """All options that `LanguageModel.generate` and `chat` share."""
