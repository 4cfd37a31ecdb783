"""The keywords that methods which generate share, with their types.

`check_keywords(..., options=...)` puts them into the signature that editors and `help` show.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.processor import LogitsProcessor
from rocmforge_jax.generate.prompt_cache import PromptCache

#: What `logits_processor=` takes for a prompt.
Processor = LogitsProcessor | Callable[..., tuple[Any, Any]]


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`; None is the default of each."""

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
    """What an answer is to hold, beside its length.

    Attributes:
        stop: Strings that end the text and are left out of it.
        params: Ready-made sampling parameters in place of single ones: for all prompts, or one for
            each prompt of a list.
        logits_processor: A jittable function that changes logits before a token is chosen, on the
            device, or a `LogitsProcessor` with the state it begins with; or one for each prompt of
            a list, with the same function.
        best_of: How many answers are generated for a prompt, of which the `n` with the highest mean
            log-probability are returned, the best first. Default: n.
        top_logprobs: How many of the likeliest tokens to return beside each chosen one, with their
            log-probabilities under the model's own distribution.
        cache: The computed beginning of the prompts, which `LanguageModel.cache` makes.
    """

    stop: str | Iterable[str] | None
    params: SamplingParams | Iterable[SamplingParams] | None
    logits_processor: Processor | Iterable[Processor] | None
    best_of: int | None
    top_logprobs: int | None
    cache: PromptCache | None


class GenerateOptions(AnswerOptions, SamplingOptions, total=False):
    """All options that `LanguageModel.generate` and `chat` share."""
