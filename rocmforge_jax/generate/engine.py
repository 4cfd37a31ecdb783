"""Token ids in, token ids out.

Weights, cache, logits and sampling stay on the device; only finished ids come back. Prompts are
padded to a few lengths and the cache grows in a few sizes, so that little is ever compiled.
"""

import collections
import collections.abc
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import check_keywords, integer
from rocmforge_jax.generate.params import SamplingParams
from rocmforge_jax.generate.prefix_cache import PrefixCache
from rocmforge_jax.generate.processor import LogitsProcessor
from rocmforge_jax.generate.prompt_cache import PromptCache, check_model, fingerprint
from rocmforge_jax.generate.requests import Limits
from rocmforge_jax.generate.scheduler import Scheduler
from rocmforge_jax.generate.sequence import Generated, check_context_length
from rocmforge_jax.generate.snapshots import Snapshots, default_snapshot_bytes
from rocmforge_jax.generate.steps import SMALLEST_BUCKET, Steps, repeated
from rocmforge_jax.models import Decoder, plan
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH, cache_length
from rocmforge_jax.nn import Cache

#: New tokens that a fresh cache has room for, if as many are asked for; beyond that it grows.
EXPECTED_TOKENS = 1024


class Engine:
    """Generates with a Decoder. It uses the decoder's arrays, not copies of them.

    A text is generated with the arrays that the decoder has when it begins, so a decoder may be
    trained in place between two texts. Nothing is compiled again unless its structure changes.

    After a single prompt its cache is kept: a next prompt that begins like that text computes only
    what is new. For layers whose state cannot be rewound, such as convolutions, snapshots are taken
    on the way, after the pieces of a prompt and about every 64 tokens of an answer; the next prompt
    goes on from the last one that suits.

    Attributes:
        config: the decoder's configuration.
        context_length: most tokens of a sequence, prompt and answer together.
        max_slots: most sequences that are generated at once, or None.
        snapshot_bytes: most bytes of the snapshots of a text.
        suppressed_ids: tokens that are never generated.
        steps: the jitted steps.
        prefix_cache: the cache of the last single prompt and its answer.
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
        """Splits the decoder; nothing is compiled yet.

        Args:
            decoder: the model.
            context_length: default: what the model was trained for. A longer one warns.
            ahead: dispatches that are begun before the tokens of the one before are read. Default:
                1 on GPUs, which are then never idle, and 0 on CPUs, where tokens computed past a
                stop token would delay the next prompt.
            max_slots: most sequences that are generated at once; further prompts wait. Default: as
                many as the free memory holds, at least 1.
            snapshot_bytes: most bytes of snapshots, 0 for none; `Snapshots` describes which are
                dropped. Default: 512 MiB, but at most a tenth of the memory that is free now.
            suppressed_ids: tokens that are never generated, whatever the parameters of sampling
                are. Log-probabilities remain those of the model's distribution over all tokens.
        """
        self.config = decoder.config
        trained, vocabulary = self.config.context_length, self.config.vocabulary
        self.context_length = check_context_length(
            trained if context_length is None else context_length
        )
        self.suppressed_ids = _checked_suppressed_ids(suppressed_ids, vocabulary)
        self._limits = Limits(self.context_length, vocabulary, self.suppressed_ids)
        if max_slots is not None:
            max_slots = integer("max_slots", max_slots, 1)
        if ahead is not None:
            ahead = integer("ahead", ahead, 0)
        if snapshot_bytes is not None:
            snapshot_bytes = integer("snapshot_bytes", snapshot_bytes, 0)
        if self.context_length > trained:
            warnings.warn(
                f"a context of {self.context_length} tokens is longer than the {trained} the model"
                " was trained for",
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
    ) -> Iterator[list[Generated]]:
        """Continues each prompt.

        An interrupted or abandoned iterator leaves the engine usable.

        Args:
            prompts: token ids. Those that do not fit into memory together wait for a free slot.
            params: how to sample, one for all, or one for each sequence: those of the first prompt,
                then those of the second. Default: `SamplingParams()`.
            max_tokens: most new tokens of each sequence, None for as many as the context holds.
            stop_ids: tokens that end a sequence.
            logits_processor: a function or `LogitsProcessor` that changes logits before a token is
                chosen, one for all prompts; or one each, with the same function.
            samples: sequences of each prompt, which is computed once for all of them.
            top_logprobs: how many of the likeliest tokens to return beside each chosen one.
            cache: the computed beginning of all prompts. They are computed from where they differ
                from it, or from one another.

        Returns:
            An iterator that yields, dispatch after dispatch, one `Generated` per sequence, until
            all have finished. It is empty for a sequence that waits or has finished.

        Raises:
            ValueError: before anything is computed, for prompts that are empty, too long or have
                ids outside the vocabulary, for biases that ban all tokens, and for what a logits
                processor must not return. From the iterator, if one leaves no token.
            FloatingPointError: from the iterator, if the model's logits are NaN.
        """
        self.check_generates()
        samples = integer("samples", samples, 1)
        top = integer("top_logprobs", top_logprobs, 0, self.config.vocabulary)
        request = prompts, params, max_tokens, stop_ids, logits_processor, samples
        sequences = self._limits.sequences(*request)
        if cache is not None:
            self._check_cache(cache, [one.prompt for one in sequences])
        return self._generate(sequences, samples, top, cache)

    def cache(self, prompt: collections.abc.Iterable[int]) -> PromptCache:
        """Computes all tokens of a prompt but the last, which is left to what goes on from it.

        Raises ValueError for a prompt of less than two tokens.
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

    def _check_cache(self, cache: PromptCache, prompts) -> None:
        if not isinstance(cache, PromptCache):
            raise TypeError(f"cache must be a PromptCache, got {type(cache).__name__}")
        check_model("the cache", cache.model, self.steps)
        cache.check(prompts)

    def check_generates(self) -> None:
        """Raises ValueError for a model that generates no text, such as an encoder."""
        if not (self.config.causal and self.config.has_head):
            raise ValueError(
                f"this {self.config.architecture} is an encoder, which generates no text: use embed"
            )

    def _generate(self, sequences, samples: int, top: int, cache: PromptCache | None):
        scheduler, steps = None, self._refreshed()
        groups = [sequences[i : i + samples] for i in range(0, len(sequences), samples)]
        try:
            scheduler, waiting = self._begin(groups, top, cache)
            while not all(one.finish_reason for one in sequences):
                while waiting and scheduler.free:
                    group = waiting.popleft()
                    scheduler.admit(*group[: scheduler.free])
                    if left := [one for one in group if not one.begun]:
                        waiting.appendleft(left)
                added = dict(scheduler.step())
                for one in added:
                    if one.finish_reason:
                        scheduler.release(one)
                yield [added.get(one, Generated([], [], one.finish_reason)) for one in sequences]
        finally:
            if scheduler is not None and len(sequences) == 1 and self.steps is steps:
                self.prefix_cache.keep(
                    sequences[0].text, scheduler.slots.cache, scheduler.snapshots
                )

    def _begin(
        self, groups, top: int, beginning: PromptCache | None
    ) -> tuple[Scheduler, collections.deque]:
        """Prefills all prompts together if their sequences fit; otherwise all of them wait.

        groups: the sequences of each prompt.
        """
        if len(groups) > 1:
            self.forget()  # before the free memory is counted
        sequences, samples = [one for group in groups for one in group], len(groups[0])
        count, tokens = self._allotment(sequences)
        if count < len(sequences):
            scheduler = self.open(count, tokens, sequences[0].processor, top, beginning)
            return scheduler, collections.deque(groups)
        prompts = [group[0].prompt for group in groups]
        logits_BV, cache, snapshots = self._prefill(prompts, tokens, beginning)
        if samples > 1:
            (logits_BV, cache), snapshots = repeated((logits_BV, cache), samples), None
        scheduler = Scheduler.of(
            self.steps, sequences, logits_BV, cache, top, snapshots=snapshots, **self._scheduling
        )
        return scheduler, collections.deque()

    def _allotment(self, sequences) -> tuple[int, int]:
        """How many sequences are generated at once, and the tokens to make room for at first."""
        longest = max(one.longest for one in sequences)
        expected = min(longest, max(len(one.prompt) for one in sequences) + EXPECTED_TOKENS)
        if len(sequences) == 1 or self.max_slots is not None:
            return min(len(sequences), self.max_slots or 1), expected
        fitting = self._fitting(cache_length(longest, self.context_length))
        if len(sequences) <= fitting:
            return len(sequences), expected
        # One sequence's cache is left for the prompt that enters. The caches are made as long as
        # they may become, because growing needs room for the old and the new one.
        return max(1, fitting - 1), longest if fitting > 2 else expected

    def _fitting(self, length: int) -> int:
        """Sequences of `length` slots whose caches the free memory holds."""
        free = plan.available_bytes(self.steps.device)
        if free is None:
            return sys.maxsize
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
        """A scheduler of `count` free slots, for requests that come one by one.

        Args:
            count: Slots.
            tokens: Room per sequence to begin with; it grows.
            logits_processor: That of the sequences: its function, and a state like theirs.
            top_logprobs: How many of the likeliest tokens to return beside each chosen one.
            cache: The computed beginning of all prompts, or None.
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
            prompts: token ids.
            slots: tokens that the cache should have room for.

        Returns:
            (logits after the last token of each prompt, float32 [B, V]; the filled cache).
        """
        self.check_generates()
        self._refreshed()
        return self._prefill(prompts, integer("slots", slots, 0))[:2]

    def _prefill(
        self, prompts, slots: int, beginning: PromptCache | None = None
    ) -> tuple[jax.Array, Cache, Snapshots | None]:
        """As `prefill`, from a computed beginning; also returns the snapshots of a single text."""
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
        """Log-probabilities that the model gives to ids[:, first + 1:] after all before them.

        Returns float32 [B, T - 1 - first].
        """
        self.check_generates()
        return self._refreshed().score(jnp.asarray(ids_BT, jnp.int32), integer("first", first, 0))

    def warm_up(self, prompt_tokens: int = SMALLEST_BUCKET, batch: int = 1) -> None:
        """Compiles the programs for prompts of this length and batches of this size.

        The first answer then does not wait for the compiler.
        """
        prompt_tokens = integer("prompt_tokens", prompt_tokens, 1)
        batch = integer("batch", batch, 1)
        if prompt_tokens >= self.context_length:
            raise ValueError(
                f"a prompt of {prompt_tokens} tokens does not fit a context of"
                f" {self.context_length} with at least one for the answer"
            )
        prompts = [[0] * prompt_tokens] * batch
        count = min(TOKENS_PER_DISPATCH, self.context_length - prompt_tokens)
        for _ in self.generate(prompts, max_tokens=count):
            pass
        self.forget()

    def use(self, decoder: Decoder) -> None:
        """Generates with another decoder from now on.

        Nothing is compiled again for one of the same structure.

        Args:
            decoder: the model; its vocabulary is that of the one before.

        Raises:
            ValueError: the vocabularies differ.
        """
        if decoder.config.vocabulary != self.config.vocabulary:
            raise ValueError(
                f"the decoder has a vocabulary of {decoder.config.vocabulary}, the engine's has"
                f" {self.config.vocabulary}: make another engine"
            )
        self._decoder = decoder
        self._refreshed()

    def _refreshed(self) -> Steps:
        """Returns the steps of the decoder's present arrays, and forgets what others computed."""
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
