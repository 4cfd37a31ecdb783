"""Checks the arguments of `LanguageModel.generate`: prompts, counts and parameters."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from rocmforge_jax.arguments import as_integer, integer
from rocmforge_jax.completion import Completion
from rocmforge_jax.generate import SamplingParams
from rocmforge_jax.generate.params import MAX_SEED

#: A text, or its token ids.
Prompt = str | Sequence[int]


def as_prompts(given: Any, function: str = "generate") -> tuple[list[str | list[int]], bool]:
    """Returns the prompts, and whether `given` is a single one. An empty list has no prompts.

    Args:
        given: What the caller gave.
        function: The name of the function in messages.

    Raises:
        TypeError: A prompt is neither a text nor a list of token ids.
    """
    if isinstance(given, str):
        return [given], True
    wanted = f"{function} takes a text, a list of token ids, or a list of either"
    listed = _listed(given)
    if listed is None:
        raise TypeError(f"{wanted}, got {type(given).__name__}")
    if not listed:
        return [], False
    if (ids := _ids(listed)) is not None:
        return [ids], True
    prompts = []
    for one in listed:
        prompt = one if isinstance(one, str) else _ids(_listed(one))
        if prompt is None:
            raise TypeError(f"{wanted}, got a list with {type(one).__name__}")
        prompts.append(prompt)
    return prompts, False


def _listed(given: Any) -> list[Any] | None:
    """Returns what an ordered collection holds, or None for anything else."""
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        return None
    if getattr(given, "ndim", 1) == 0:
        return None
    return list(given)


def _ids(listed: list[Any] | None) -> list[int] | None:
    if listed is None:
        return None
    ids = [id for one in listed if (id := as_integer(one)) is not None]
    return ids if len(ids) == len(listed) else None


def counts(n: int | None, best_of: int | None, stream: bool) -> tuple[int, int]:
    """Returns how many answers to return per prompt, and how many to generate.

    Raises:
        ValueError: A count is out of range, or `best_of` is combined with a stream.
    """
    wanted = 1 if n is None else integer("n", n, 1)
    drawn = wanted if best_of is None else integer("best_of", best_of, wanted)
    if stream and drawn > wanted:
        raise ValueError(
            f"best_of={drawn} with stream=True: which {wanted} are the best is known at the end"
        )
    return wanted, drawn


def best(completions: list[Completion]) -> list[Completion]:
    """Sorts completions by the mean log-probability of their tokens, highest first."""
    return sorted(completions, key=lambda one: -one.mean_logprob)


def each_params(
    params: Any, options: Mapping[str, Any], count: int, samples: int = 1
) -> list[SamplingParams]:
    """Returns the parameters of each sequence: `samples` for each of `count` prompts.

    Args:
        params: `SamplingParams` for all prompts or for each, or None.
        options: Single fields of `SamplingParams`.
        count: The number of prompts.
        samples: The number of sequences per prompt.

    Seeds count up: from the seed of a single `params` over all sequences, or from that of each
    prompt over its samples.

    Raises:
        TypeError: Both `params` and fields are given, or `params` has another type.
        ValueError: The number of parameters does not match the number of prompts.
    """
    sampling = {name: value for name, value in options.items() if value is not None}
    if params is None:
        return _seeded(SamplingParams(**sampling), count * samples)
    if sampling:
        raise TypeError(f"give params or {', '.join(sampling)}, not both")
    if isinstance(params, SamplingParams):
        return _seeded(params, count * samples)
    if isinstance(params, str | bytes | Mapping) or not isinstance(params, Iterable):
        raise TypeError(f"params must be SamplingParams, or a list of them, got {params!r}")
    each = list(params)
    if samples == 1 or not all(isinstance(one, SamplingParams) for one in each):
        return each
    if len(each) != count:
        raise ValueError(f"{count} prompts need as many sampling parameters, got {len(each)}")
    return [sample for one in each for sample in _seeded(one, samples)]


def _seeded(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Returns `count` copies of parameters with consecutive seeds."""
    seeds = ((params.seed + i) % (MAX_SEED + 1) for i in range(count))
    return [dataclasses.replace(params, seed=seed) for seed in seeds]
