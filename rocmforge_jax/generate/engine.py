"""The engine: generates token ids from token ids.

Weights, cache, logits and sampling stay on the device; only generated ids return to the host.
Prompts are padded to a few lengths and the cache grows in a few sizes, so few programs are
compiled.
"""

import collections
import collections.abc
import os
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import check_keywords, integer
from rocmforge_jax.generate.generation import Generation
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.prefix_cache import PrefixCache
from rocmforge_jax.generate.processor import LogitsProcessor
from rocmforge_jax.generate.prompt_cache import PromptCache, check_model, fingerprint
from rocmforge_jax.generate.requests import Limits
from rocmforge_jax.generate.scheduler import Scheduler
from rocmforge_jax.generate.sequence import check_context_length
from rocmforge_jax.generate.snapshots import Snapshots, default_snapshot_bytes
from rocmforge_jax.generate.steps import SMALLEST_BUCKET, Steps, repeated
from rocmforge_jax.models import Decoder, plan
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH, cache_length
from rocmforge_jax.nn import Cache

#: A new cache has room for at most this many new tokens. It grows when more are generated.
EXPECTED_TOKENS = 1024
#: Prompts are computed one by one if, together, they take this many times as many positions, with
#: padding. A prompt alone counts as `TOKENS_OF_ENTRY` more, because its steps read all weights.
WASTE, TOKENS_OF_ENTRY = 1.5, 64


class Engine:
    """Generates text with a Decoder. It uses the decoder's arrays without copying them.

    A text uses the arrays that the decoder has when generation begins. So a decoder may be trained
    in place between two texts. Nothing is compiled again unless its structure changes.

    After a single prompt, its cache is kept. A next prompt with the same start computes only the
    new tokens. Some layers have states that cannot be rewound, such as convolutions. For these,
    snapshots are taken after each chunk of a prompt and about every 64 tokens of an answer. The
    next prompt continues from the last suitable snapshot.

    Attributes:
        config: The decoder's configuration.
        context_length: The maximum number of tokens of a sequence, prompt and answer together.
        max_slots: The maximum number of sequences generated at once, or None.
        snapshot_bytes: The limit for the snapshots of a text, in bytes.
        suppressed_ids: Tokens that are never generated.
        steps: The jitted steps.
        prefix_cache: The cache of the last single prompt and its answer.
    """

    @check_keywords
    def __init__(
        self,
        decoder: Decoder,
        *,
        context_length: int | None = None,
        ahead: int | None = None,
        max_slots: int | None = None,
        snapshot_bytes: int | None = None,
        suppressed_ids: collections.abc.Iterable[int] | None = None,
    ):
        """Splits the decoder. Nothing is compiled yet.

        Args:
            decoder: The model.
            context_length: The maximum number of tokens of a sequence. Default: the length that the
                model was trained for; a longer one warns. Learned position embeddings limit it.
            ahead: How many further dispatches start before the tokens of the oldest one are read.
                Default: 1 on GPUs, which keeps them busy. On CPUs it is 0, because tokens computed
                past a stop token would delay the next prompt.
            max_slots: The maximum number of sequences generated at once; further prompts wait.
                Default: as many as fit into the free memory, at least 1.
            snapshot_bytes: The limit for snapshots in bytes, 0 for none; see `Snapshots`. Default:
                512 MiB, but at most a tenth of the memory that is free now.
            suppressed_ids: Tokens that are never generated, regardless of the sampling parameters.
                Log-probabilities still refer to the model's distribution over all tokens.
        """
        self.config = decoder.config
        trained, vocabulary = self.config.context_length, self.config.vocabulary
        asked = check_context_length(
            self.config.text_length(trained) if context_length is None else context_length
        )
        self.context_length = self.config.text_length(asked)
        self.suppressed_ids = _checked_suppressed_ids(suppressed_ids, vocabulary)
        self._limits = Limits(self.context_length, vocabulary, self.suppressed_ids)
        if max_slots is not None:
            max_slots = integer("max_slots", max_slots, 1)
        if ahead is not None:
            ahead = integer("ahead", ahead, 0)
        if snapshot_bytes is not None:
            snapshot_bytes = integer("snapshot_bytes", snapshot_bytes, 0)
        if asked > self.context_length:
            warnings.warn(
                f"a context of {asked} tokens is longer than the {self.context_length} positions"
                f" that the model has embeddings of: texts have up to {self.context_length} tokens",
                stacklevel=3,
            )
        elif asked > trained:
            warnings.warn(
                f"a context of {asked} tokens is longer than the {trained} the model was trained"
                " for",
                stacklevel=3,
            )
        self._decoder, self.steps = decoder, Steps(decoder, self.suppressed_ids)
        if snapshot_bytes is None:
            snapshot_bytes = default_snapshot_bytes(self.steps.device)
        self.max_slots, self.snapshot_bytes = max_slots, snapshot_bytes
        self.prefix_cache = PrefixCache(snapshot_bytes)
        if ahead is None:
            ahead = 0 if jax.default_backend() == "cpu" else 1
        self._scheduling: dict[str, Any] = dict(context_length=self.context_length, ahead=ahead)

    def __repr__(self):
        return (
            f"<Engine of a {self.config.architecture} decoder: context of {self.context_length:,}"
            f" tokens, {self.prefix_cache!r}>"
        )

    @check_keywords
    def generate(
        self,
        prompts: collections.abc.Iterable[collections.abc.Iterable[int]],
        params: SamplingParams | collections.abc.Sequence[SamplingParams] | None = None,
        *,
        max_tokens: int | None = None,
        stop_ids: collections.abc.Iterable[int] | None = None,
        logits_processor: Any = None,
        samples: int = 1,
        top_logprobs: int = 0,
        cache: PromptCache | None = None,
    ) -> Generation:
        """Continues each prompt.

        The engine remains usable if the iterator is interrupted or abandoned.

        Args:
            prompts: Token ids. Prompts that do not fit into memory together wait for a free slot.
            params: The sampling parameters: one for all, or one per sequence, ordered by prompt.
                Default: `SamplingParams()`.
            max_tokens: The maximum number of new tokens per sequence. None for all that the context
                allows.
            stop_ids: Tokens that end a sequence.
            logits_processor: A function or `LogitsProcessor` that changes logits before a token is
                sampled. One for all prompts, or one each with the same function.
            samples: The number of sequences per prompt. The prompt is computed once for all of
                them.
            top_logprobs: How many of the most likely tokens to return with each chosen one.
            cache: The computed prefix of all prompts. The computation starts at the first token
                where a prompt differs from it or from another prompt.

        Returns:
            An iterator that yields, after each dispatch, one `Generated` per sequence, until all
            have finished. It is empty for a sequence that waits or has finished. Its method `stop`
            ends a single sequence.

        Raises:
            ValueError: Raised before any computation. A prompt is empty, too long or has ids
                outside the vocabulary; biases ban all tokens; or a logits processor returns
                something invalid. Raised by the iterator if a logits processor leaves no token.
            FloatingPointError: Raised by the iterator if the model's logits are NaN.
        """
        self.check_generates()
        samples = integer("samples", samples, 1)
        top = integer("top_logprobs", top_logprobs, 0, self.config.vocabulary)
        request = prompts, params, max_tokens, stop_ids, logits_processor, samples
        sequences = self._limits.sequences(*request)
        if cache is not None:
            self._check_cache(cache, [one.prompt for one in sequences])
        return Generation(sequences, self._generate(sequences, samples, top, cache))

    def cache(self, prompt: collections.abc.Iterable[int]) -> PromptCache:
        """Computes all tokens of a prompt except the last, which is left to later prompts.

        Raises:
            ValueError: The prompt has fewer than two tokens.
        """
        self.check_generates()
        self._refreshed()
        ids = self._limits.prompt("prompt", prompt)
        if len(ids) < 2:
            raise ValueError("a cache of a prompt needs at least 2 tokens, got 1")
        _, cache, snapshots = self._prefill([ids[:-1]], 0)
        assert snapshots is not None
        held = snapshots.held(cache)
        return PromptCache(tuple(ids[:-1]), cache, fingerprint(self.steps), held)

    def load_cache(self, path: str | os.PathLike) -> PromptCache:
        """Reads a file that `PromptCache.save` wrote; see `PromptCache.load`."""
        return PromptCache.load(path, self._refreshed())

    def _check_cache(self, cache: PromptCache, prompts) -> None:
        if not isinstance(cache, PromptCache):
            raise TypeError(f"cache must be a PromptCache, got {type(cache).__name__}")
        check_model("the cache", cache.model, self._refreshed())
        cache.check(prompts)

    def check_generates(self) -> None:
        """Raises ValueError for a model that cannot generate text, such as an encoder."""
        if not (self.config.causal and self.config.has_head):
            raise ValueError(
                f"this {self.config.architecture} is an encoder, which generates no text: use embed"
            )

    def _generate(self, sequences, samples: int, top: int, cache: PromptCache | None):
        """Yields what each dispatch added, by the number of the sequence."""
        scheduler, steps = None, self._refreshed()
        numbers = {one: number for number, one in enumerate(sequences)}
        groups = [sequences[i : i + samples] for i in range(0, len(sequences), samples)]
        try:
            scheduler, waiting = self._begin(groups, top, cache)
            while True:
                scheduler.release_finished()
                while waiting and scheduler.free:
                    group = [one for one in waiting.popleft() if not one.finish_reason]
                    entering, left = group[: scheduler.free], group[scheduler.free :]
                    if entering:
                        scheduler.admit(*entering)
                    if left:
                        waiting.appendleft(left)
                if scheduler.idle:
                    break
                yield {numbers[one]: generated for one, generated in scheduler.step()}
        finally:
            if scheduler is not None and len(sequences) == 1 and self.steps is steps:
                self.prefix_cache.keep(
                    sequences[0].text, scheduler.slots.cache, scheduler.snapshots
                )

    def _begin(
        self, groups, top: int, beginning: PromptCache | None
    ) -> tuple[Scheduler, collections.deque]:
        """Prefills all prompts together if their sequences fit and their lengths are similar.

        Otherwise all prompts wait, and are computed one by one.

        Args:
            groups: The sequences of each prompt.
            top: See `generate`.
            beginning: The computed prefix of all prompts, or None.

        Returns:
            (the scheduler, the groups that wait).
        """
        if len(groups) > 1:
            self.forget()  # before the free memory is counted
        sequences, samples = [one for group in groups for one in group], len(groups[0])
        count, tokens = self._allotment(sequences)
        prompts = [group[0].prompt for group in groups]
        is_apart = beginning is None and self._wastes_padding(prompts)
        is_apart = is_apart and self._fitting(sequences) > len(sequences)  # one more for the entry
        if count < len(sequences) or is_apart:
            scheduler = self.open(count, tokens, sequences[0].processor, top, beginning)
            return scheduler, collections.deque(groups)
        logits_BV, cache, snapshots = self._prefill(prompts, tokens, beginning)
        if samples > 1:
            (logits_BV, cache), snapshots = repeated((logits_BV, cache), samples), None
        scheduler = Scheduler.of(
            self.steps, sequences, logits_BV, cache, top, snapshots=snapshots, **self._scheduling
        )
        return scheduler, collections.deque()

    def _allotment(self, sequences) -> tuple[int, int]:
        """Returns how many sequences to generate at once, and the initial room per sequence."""
        longest = max(one.longest for one in sequences)
        expected = min(longest, max(len(one.prompt) for one in sequences) + EXPECTED_TOKENS)
        if len(sequences) == 1 or self.max_slots is not None:
            return min(len(sequences), self.max_slots or 1), expected
        fitting = self._fitting(sequences)
        if len(sequences) <= fitting:
            return len(sequences), expected
        # Reserve memory for one more cache, of the prompt that enters. Allocate the caches at full
        # length, because growing needs room for the old and the new cache.
        return max(1, fitting - 1), longest if fitting > 2 else expected

    def _wastes_padding(self, prompts) -> bool:
        """Returns whether prompts are computed faster one by one than padded to the longest."""
        padded = [self.steps.padded(len(prompt)) for prompt in prompts]
        apart = sum(padded) + TOKENS_OF_ENTRY * len(prompts)
        return len(prompts) * max(padded) > WASTE * apart

    def _fitting(self, sequences) -> int:
        """Returns how many caches for the longest of some sequences fit into the free memory."""
        free = plan.available_bytes(self.steps.device)
        if free is None:
            return sys.maxsize
        length = cache_length(max(one.longest for one in sequences), self.context_length)
        free -= plan.temporary_bytes(self.config, min(length, plan.TOKENS))
        return free // self.steps.cache_bytes(1, length)

    def open(
        self,
        count: int,
        tokens: int,
        logits_processor: LogitsProcessor | None = None,
        top_logprobs: int = 0,
        cache: PromptCache | None = None,
    ) -> Scheduler:
        """Returns a scheduler with `count` free slots, for requests that arrive one by one.

        Args:
            count: The number of slots.
            tokens: The initial room per sequence in tokens; it grows.
            logits_processor: The logits processor of the sequences: its function, and a state of
                the same shapes.
            top_logprobs: How many of the most likely tokens to return with each chosen one.
            cache: The computed prefix of all prompts, or None.
        """
        self.check_generates()
        count, tokens = integer("count", count, 1), integer("tokens", tokens, 1)
        length, steps = cache_length(tokens, self.context_length), self._refreshed()
        slots = steps.empty_slots(count, length, logits_processor, top_logprobs)
        return Scheduler(steps, slots, beginning=cache, **self._scheduling)

    def prefill(
        self, prompts: collections.abc.Sequence[list[int]], *, slots: int = 0
    ) -> tuple[jax.Array, Cache]:
        """Computes prompts together.

        Args:
            prompts: Token ids, at least one prompt.
            slots: The number of tokens that the cache should have room for.

        Returns:
            (the logits after the last token of each prompt, float32 [B, V]; the filled cache).

        Raises:
            ValueError: There is no prompt, or one is empty, too long or has ids outside the
                vocabulary.
        """
        self.check_generates()
        prompts = self._limits.prompts(prompts)
        if not prompts:
            raise ValueError("prefill takes at least one prompt, got none")
        self._refreshed()
        return self._prefill(prompts, integer("slots", slots, 0))[:2]

    def _prefill(
        self, prompts, slots: int, beginning: PromptCache | None = None
    ) -> tuple[jax.Array, Cache, Snapshots | None]:
        """Computes prompts as in `prefill`, optionally from a prompt cache.

        Also returns the snapshots of a single text.
        """
        cache, known, snapshots = None, 0, None
        if beginning is not None:
            cache, known, snapshots = beginning.start(prompts, self.snapshot_bytes)
            snapshots = snapshots if len(prompts) == 1 else None
        elif len(prompts) == 1:
            cache, known, snapshots = self.prefix_cache.take(prompts[0])
        self.forget()
        needed = known + self.steps.padded(max(map(len, prompts)) - known)
        if cache is None:
            length = cache_length(max(needed, slots), self.context_length)
            cache = self.steps.init_cache(len(prompts), length)
        elif needed > cache.length:
            cache = cache.grown(cache_length(needed, self.context_length))
        if snapshots is not None:
            self.prefix_cache.check_snapshots(cache)
        logits_BV, cache = self.steps.prefill_prompts(prompts, cache, known, snapshots)
        return logits_BV, cache, snapshots

    def score(self, ids_BT: np.ndarray, first: int = 0) -> jax.Array:
        """Returns the log-probabilities of ids[:, first + 1:], each given all tokens before it.

        Args:
            ids_BT: Token ids, [B, T], with T from 2 on.
            first: The position from which on tokens are predicted, at most T - 2.

        Returns:
            float32 [B, T - 1 - first].

        Raises:
            ValueError: The ids are no such array of integers, or are outside the vocabulary; or
                `first` is out of range.
        """
        self.check_generates()
        ids_BT = self._limits.ids(ids_BT)
        first = integer("first", first, 0, ids_BT.shape[1] - 2)
        return self._refreshed().score(jnp.asarray(ids_BT, jnp.int32), first)

    def warm_up(self, prompt_tokens: int = SMALLEST_BUCKET, batch: int = 1) -> None:
        """Compiles the programs for prompts of a length and batches of a size.

        The first answer then does not wait for the compiler.

        Args:
            prompt_tokens: The number of tokens of a prompt.
            batch: The number of prompts.
        """
        prompt_tokens = integer("prompt_tokens", prompt_tokens, 1)
        batch = integer("batch", batch, 1)
        if prompt_tokens >= self.context_length:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens does not fit a context of"
                f" {self.context_length} with at least one for the answer: shorten it, or raise"
                " context_length"
            )
        prompts = [[0] * prompt_tokens] * batch
        count = min(TOKENS_PER_DISPATCH, self.context_length - prompt_tokens)
        for _ in self.generate(prompts, max_tokens=count):
            pass
        self.forget()

    def use(self, decoder: Decoder) -> None:
        """Replaces the decoder.

        A decoder with the same structure compiles nothing again.

        Args:
            decoder: The model, with the same vocabulary size.

        Raises:
            ValueError: The vocabulary sizes differ.
        """
        if decoder.config.vocabulary != self.config.vocabulary:
            raise ValueError(
                f"the decoder has a vocabulary of {decoder.config.vocabulary}, the engine's has"
                f" {self.config.vocabulary}: make another engine"
            )
        self._decoder = decoder
        self._refreshed()

    def _refreshed(self) -> Steps:
        """Returns steps with the decoder's current arrays, and drops caches of other arrays."""
        steps = self.steps.of(self._decoder)
        if steps is not self.steps:
            self.forget()
            self.steps, self.config = steps, steps.config
        return steps

    def forget(self) -> None:
        """Drops the cache that was kept for the next prompt."""
        self.prefix_cache.forget()


def _checked_suppressed_ids(
    ids: collections.abc.Iterable[int] | None, vocabulary: int
) -> frozenset:
    given = () if ids is None else ids
    suppressed = frozenset(integer("a suppressed id", id, 0, vocabulary - 1) for id in given)
    if len(suppressed) == vocabulary:
        raise ValueError(f"suppressed_ids are all {vocabulary} tokens: none is left to generate")
    return suppressed
