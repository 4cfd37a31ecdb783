"""The scheduler of continuous batching: assigns sequences to slots and runs dispatches."""

import collections
import collections.abc
import dataclasses

import jax
import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.generate.prompt_cache import PromptCache
from rocmforge_jax.generate.sequence import Generated, Sequence, check_context_length
from rocmforge_jax.generate.snapshots import Snapshots
from rocmforge_jax.generate.steps import Slots, Steps, insert, start
from rocmforge_jax.models.plan import TOKENS_PER_DISPATCH, cache_length
from rocmforge_jax.models.sharding import readable
from rocmforge_jax.nn import Cache


@dataclasses.dataclass(frozen=True)
class _Dispatch:
    """A dispatch in progress. Row i belongs to owners[i], which is None for an unused row.

    Attributes:
        owners: The sequence of each row.
        chosen: The results of `steps.decode` except the slots.
    """

    owners: list[Sequence | None]
    chosen: list[jax.Array]


class Scheduler:
    """Generates tokens for the sequences in the slots of one batch (continuous batching).

    A sequence enters a free slot with `admit`, gets tokens from `step` and leaves with `release`.
    All slots are computed together.

    Attributes:
        slots: The state on the device. An interrupted dispatch may have consumed its arrays.
        snapshots: The snapshots of a single sequence, or None.
    """

    def __init__(
        self,
        steps: Steps,
        slots: Slots,
        *,
        context_length: int,
        ahead: int,
        snapshots: Snapshots | None = None,
        beginning: PromptCache | None = None,
    ):
        """Creates a scheduler from slots without sequences.

        Args:
            steps: The steps of the model.
            slots: See `Steps.empty_slots`.
            context_length: The maximum number of tokens of a sequence.
            ahead: How many further dispatches start before the tokens of the oldest one are read.
            snapshots: Snapshots taken between dispatches, for a single sequence; None for none.
            beginning: The computed prefix of all prompts that enter, or None.
        """
        self.slots, self.snapshots, self._steps = slots, snapshots, steps
        self._context_length = check_context_length(context_length)
        self._ahead, self._beginning = integer("ahead", ahead, 0), beginning
        self._owners: list[Sequence | None] = [None] * slots.batch
        self._active = [False] * slots.batch  # a copy of `slots.active_B` on the host
        self._running: collections.deque[_Dispatch] = collections.deque()

    @classmethod
    def of(
        cls,
        steps: Steps,
        sequences: collections.abc.Sequence[Sequence],
        logits_BV,
        cache: Cache,
        top: int = 0,
        **options,
    ) -> "Scheduler":
        """Returns a scheduler with all slots occupied by sequences that were prefilled together.

        Args:
            steps: The steps of the model.
            sequences: The sequences, one per slot.
            logits_BV: float32 [B, V], after the last token of each prompt.
            cache: The cache of the prompts.
            top: See `Slots`.
            options: Further arguments of the constructor.
        """
        slots, *chosen = start(
            logits_BV,
            cache,
            [one.prompt for one in sequences],
            [one.params for one in sequences],
            allowed_V=steps.allowed_V,
            processors=[one.processor for one in sequences],
            top=top,
        )
        scheduler = cls(steps, slots, **options)
        scheduler._enter(range(len(sequences)), sequences, chosen)
        return scheduler

    @property
    def free(self) -> int:
        """The number of slots without a sequence."""
        return self._owners.count(None)

    @property
    def idle(self) -> bool:
        """Whether all slots are free."""
        return self.free == self.slots.batch

    def admit(self, sequence: Sequence, *more: Sequence) -> None:
        """Computes the prompt of a sequence and puts the sequence into a free slot.

        Args:
            sequence: The sequence.
            more: Further sequences with the same prompt, which is computed once.

        Raises:
            ValueError: Too few slots are free, or they are for another logits processor.
        """
        entering, prompt = (sequence, *more), sequence.prompt
        if self.free < len(entering):
            raise ValueError(
                f"all {self.slots.batch} slots are taken: release a sequence first"
                if not self.free
                else f"{len(entering)} sequences enter, {self.free} of {self.slots.batch} slots are"
                " free"
            )
        for one in entering:
            self._check_processor(one)
            if one in self._owners or entering.count(one) > 1:
                raise ValueError("a sequence enters that is in a slot already")
        logits_BV, cache = self._prefill(prompt)
        for one in entering:
            self._put(one, logits_BV, cache)

    def _prefill(self, prompt: list[int]) -> tuple[jax.Array, Cache]:
        """Computes a prompt. Returns the logits after it, and a cache as long as the slots'."""
        if self._beginning is None:
            self._make_room(self._steps.padded(len(prompt)))
            empty = self._steps.init_cache(1, self.slots.length)
            return self._steps.prefill_prompts([prompt], empty)
        cache, known, _ = self._beginning.start([prompt])
        self._make_room(max(cache.length, known + self._steps.padded(len(prompt) - known)))
        cache = cache.grown(self.slots.length)
        return self._steps.prefill_prompts([prompt], cache, known)

    def _put(self, sequence: Sequence, logits_BV, cache: Cache) -> None:
        """Puts a sequence with a computed prompt into the first free slot."""
        row = self._owners.index(None)
        one, *chosen = start(
            logits_BV,
            cache,
            [sequence.prompt],
            [sequence.params],
            bias_width=self.slots.sampler.bias_width,
            allowed_V=self._steps.allowed_V,
            processors=[sequence.processor],
            top=self.slots.top,
        )
        slots = self.slots.with_bias_width(one.sampler.bias_width)
        self.slots = insert(slots, jax.device_put(np.int32(row)), one)
        self._enter([row], [sequence], chosen)

    def step(self) -> list[tuple[Sequence, Generated]]:
        """Returns the tokens that the oldest dispatch added to each of its sequences.

        Further dispatches are started first, so that the device is never idle. A sequence that has
        just entered has a separate dispatch with one token.
        """
        while len(self._running) <= self._ahead and any(
            one is not None and one.wants_more for one in self._owners
        ):
            self._begin_dispatch()
        if not self._running:
            return []
        oldest = self._running.popleft()
        chosen = (np.asarray(readable(array)).tolist() for array in oldest.chosen)
        return [
            (one, one.take(*tokens))
            for one, tokens in zip(oldest.owners, zip(*chosen))
            if one is not None and one in self._owners
        ]

    def release(self, sequence: Sequence) -> None:
        """Frees the slot of a sequence, finished or not; raises ValueError if it has none."""
        if sequence not in self._owners:
            raise ValueError("a sequence leaves that is in no slot")
        self._owners[self._owners.index(sequence)] = None

    def release_finished(self) -> None:
        """Frees the slots of all sequences that have finished."""
        self._owners = [None if one is None or one.finish_reason else one for one in self._owners]

    def _check_processor(self, sequence: Sequence):
        running, entering = self.slots.processing, sequence.processor
        if (running and running.function) is not (entering and entering.function):
            raise ValueError(
                f"the {self.slots.batch} slots run together with one logits processor, and this"
                " sequence has another one or none: open a scheduler for it"
            )

    def _enter(self, rows, sequences, chosen):
        for row, one in zip(rows, sequences):
            self._owners[row], self._active[row], one.begun = one, True, 1
        self._running.append(_Dispatch(list(sequences), chosen))

    def _begin_dispatch(self):
        owners = [one if one is not None and one.wants_more else None for one in self._owners]
        active = [one is not None for one in owners]
        if active != self._active:
            active_B = jax.device_put(np.array(active))
            self.slots, self._active = dataclasses.replace(self.slots, active_B=active_B), active
        # The newest token of a sequence is not in the cache yet.
        filled = max(len(one.prompt) + one.begun - 1 for one in owners if one is not None)
        self._make_room(filled + TOKENS_PER_DISPATCH)
        if self.snapshots is not None and self.snapshots.due(filled):
            self.snapshots.take(self.slots.cache, filled)
        self.slots, *chosen = self._steps.decode(self.slots, TOKENS_PER_DISPATCH)
        for one in owners:
            if one is not None:
                one.begun += TOKENS_PER_DISPATCH
        self._running.append(_Dispatch(owners, chosen))

    def _make_room(self, tokens: int):
        if tokens > self.slots.length:
            self.slots = self.slots.grown(cache_length(tokens, self._context_length))
