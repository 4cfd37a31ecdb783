"""The computations of generation: pure functions of a model's flat arrays, and their jitted forms.

All jit boundaries of generation are here. The model is split once and every step is `jax.jit` on
its flat leaves: dispatching 576 arrays takes 0.5 ms this way and 10 ms through `nnx.jit`.
Everything a step reads or changes lies in one pytree, `Slots`, so another prompt, temperature or
set of active sequences compiles nothing.
"""

import collections.abc
import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.generate.flat import FlatDecoder
from rocmforge_jax.generate.params import PENALTY_WINDOW, SamplingParams
from rocmforge_jax.generate.processor import LogitsProcessor, Processing
from rocmforge_jax.generate.sampling import Sampler, sample
from rocmforge_jax.generate.snapshots import SNAPSHOT_INTERVAL, Snapshots
from rocmforge_jax.models import Decoder
from rocmforge_jax.models.empty_cache import bytes_on_a_device, init_cache, placement_of
from rocmforge_jax.models.sharding import on_every_device
from rocmforge_jax.nn import Cache

#: Tokens of the longest piece of a prompt that is computed at once. A GPU dequantises every weight
#: once per piece, so its pieces are longer.
PREFILL_CHUNK, PREFILL_CHUNK_ON_GPUS = 512, 2048
#: Shorter pieces are padded to a power of two, at least this one.
SMALLEST_BUCKET = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The sequences of a batch on the device: what decoding reads and returns.

    A slot without a sequence is inactive. A step computes it like the others, but its length stays,
    so it never outgrows the cache; its other fields and its states are then unspecified until a
    sequence enters, which replaces them all. A slot that has become inactive is never resumed.

    Attributes:
        cache: the state of every layer, [B, ...] each, and `lengths_B`, int32 [B], the tokens that
            the state holds, 0 to cache.length. Example: 7 after a prompt of 7 tokens.
        last_B: int32 [B], 0 to vocabulary - 1: the newest token, which is not in the cache yet.
        recent_BW: int32 [B, PENALTY_WINDOW], -1 to vocabulary - 1: the newest tokens, the latest
            one last, after -1 for each that is missing. Penalties look back on them.
        sampler: the sampling parameters, [B, ...] each, see `Sampler`.
        active_B: bool [B]: whether a sequence occupies the slot.
        processing: the logits processor of the sequences, or None.
        top: how many of the likeliest tokens are returned beside each chosen one. Static.
    """

    cache: Cache
    last_B: jax.Array
    recent_BW: jax.Array
    sampler: Sampler
    active_B: jax.Array
    processing: Processing | None = None
    top: int = dataclasses.field(default=0, metadata=dict(static=True))

    @property
    def batch(self) -> int:
        """Sequences that can be held, B."""
        return self.cache.batch

    @property
    def length(self) -> int:
        """Tokens per sequence that the cache has room for."""
        return self.cache.length

    def with_row(self, b, other: "Slots") -> "Slots":
        """The slots with slot b replaced by the only one of `other`. b: int32 []."""
        rows = jax.tree.map(
            lambda array, row: jax.lax.dynamic_update_slice_in_dim(array, row, b, 0),
            *(dataclasses.replace(slots, cache=None) for slots in (self, other)),
        )
        return dataclasses.replace(rows, cache=self.cache.with_row(b, other.cache))

    def grown(self, length: int) -> "Slots":
        """A copy whose cache has room for `length` tokens per sequence."""
        processing = self.processing
        processing = None if processing is None else processing.grown(length)
        return dataclasses.replace(self, cache=self.cache.grown(length), processing=processing)

    def with_bias_width(self, width: int) -> "Slots":
        """The slots with room for `width` tokens of logit_bias each, at least."""
        if width <= self.sampler.bias_width:
            return self
        return dataclasses.replace(self, sampler=self.sampler.widened(width))


def prefill(merge, leaves, cache: Cache, tokens_BT, added_B, before_BV):
    """Computes one padded piece of each prompt.

    Args:
        merge: leaves -> the decoder.
        leaves: the decoder's arrays.
        cache: holds what comes before the piece, and has room for T tokens more.
        tokens_BT: int32 [B, T], the piece, padded at its end.
        added_B: int32 [B], 0 to T: how many tokens of each sequence are real.
        before_BV: float32 [B, V], logits of the piece before.

    Returns:
        (logits after the last real token, float32 [B, V]; the cache). A sequence without a token in
        this piece keeps `before_BV`.
    """
    decoder = merge(leaves)
    logits_BV, cache = decoder(tokens_BT, cache, lengths_B=added_B, last_only=True)
    logits_BV = on_every_device(logits_BV, decoder)
    return jnp.where(added_B[:, None] > 0, logits_BV, before_BV), cache


def decode(merge, leaves, slots: Slots, allowed_V, count: int):
    """Takes the last token of each sequence in and generates `count` more.

    The cache must have room for `count` tokens more of each active sequence. allowed_V: see
    `sample`.

    Returns:
        (the slots; ids, int32 [B, count]; log-probabilities, float32 [B, count]), and with
        `slots.top` the ids and log-probabilities of the likeliest, [B, count, top] each. What is
        returned for an inactive slot is unspecified.
    """
    decoder, added_B = merge(leaves), slots.active_B.astype(jnp.int32)

    def step(carry, _):
        cache, last_B, recent_BW, processing = carry
        if processing is not None:
            processing = processing.with_tokens(last_B, cache.lengths_B)
        logits_BV, after = decoder(last_B[:, None], cache, last_only=True)
        logits_BV = on_every_device(logits_BV, decoder)
        # The decoder counts every slot on; an inactive one stays where it is. Passing `lengths_B`
        # instead would make the decoder gather the last token of one.
        cache = dataclasses.replace(after, lengths_B=cache.lengths_B + added_B)
        chosen, recent_BW, processing = sample_next(
            logits_BV, slots.sampler, cache.lengths_B, recent_BW, allowed_V, processing, slots.top
        )
        return (cache, chosen[0], recent_BW, processing), chosen

    carry = slots.cache, slots.last_B, slots.recent_BW, slots.processing
    carry, chosen = jax.lax.scan(step, carry, length=count)
    cache, last_B, recent_BW, processing = carry
    slots = dataclasses.replace(
        slots, cache=cache, last_B=last_B, recent_BW=recent_BW, processing=processing
    )
    return slots, *(jnp.swapaxes(array, 0, 1) for array in chosen)


def score(merge, leaves, ids_BT, first: int):
    """Log-probabilities of ids[:, first + 1:] after all before them, float32 [B, T - 1 - first]."""
    decoder = merge(leaves)
    logits_BTV, _ = decoder(ids_BT[:, :-1])
    logits_BTV, targets_BT = on_every_device(logits_BTV, decoder)[:, first:], ids_BT[:, first + 1 :]
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


@functools.partial(jax.jit, static_argnums=6)
def sample_next(
    logits_BV,
    sampler: Sampler,
    positions_B,
    recent_BW,
    allowed_V,
    processing: Processing | None = None,
    top: int = 0,
):
    """Samples a token of each sequence, after `positions_B` tokens.

    Returns:
        ((tokens, log-probabilities), and with `top` the ids and log-probabilities [B, top] of the
        likeliest tokens under the model's own distribution, in descending order; the recent tokens
        with the new ones; the processor).
    """
    processed_BV = None
    if processing is not None:
        processed_BV, processing = processing(logits_BV.astype(jnp.float32), positions_B)
    tokens_B, logprobs_B = sample(
        logits_BV, sampler, positions_B, recent_BW, allowed_V, processed_BV
    )
    recent_BW = jnp.concatenate([recent_BW[:, 1:], tokens_B[:, None]], axis=1)
    chosen = tokens_B, logprobs_B
    if top:
        best_BK, ids_BK = jax.lax.top_k(logits_BV.astype(jnp.float32), top)
        total_B = jax.nn.logsumexp(logits_BV.astype(jnp.float32), axis=-1, keepdims=True)
        chosen = *chosen, ids_BK.astype(jnp.int32), best_BK - total_B
    return chosen, recent_BW, processing


@functools.partial(jax.jit, static_argnums=1)
def repeated(tree, count: int):
    """Returns a copy of a pytree with each row `count` times, one after the other.

    `jnp.copy` asks for buffers of its own where nothing is repeated: the copy may be donated.
    """
    return jax.tree.map(lambda array: jnp.repeat(jnp.copy(array), count, axis=0), tree)


#: insert(slots, b, other): `Slots.with_row` in place: the slots are donated.
insert = jax.jit(Slots.with_row, donate_argnums=0)


def start(
    logits_BV,
    cache: Cache,
    prompts: collections.abc.Sequence[list[int]],
    params: collections.abc.Sequence[SamplingParams],
    *,
    bias_width: int = 0,
    allowed_V: jax.Array | None = None,
    processors: collections.abc.Sequence[LogitsProcessor | None] = (),
    top: int = 0,
) -> tuple:
    """Samples the first token after each prompt.

    Args:
        logits_BV: float32 [B, V], after the last token of each prompt.
        cache: of the prompts.
        prompts: token ids, B lists.
        params: how each sequence is sampled.
        bias_width: least room for tokens of logit_bias, see `Sampler.of`.
        allowed_V: see `sample`.
        processors: the logits processor of each sequence.
        top: see `Slots`.

    Returns:
        (slots that are all active; what `decode` returns, for one token).
    """
    sampler = Sampler.of(params, bias_width)
    processing = Processing.of(processors, prompts, cache.length)
    chosen, recent_BW, processing = sample_next(
        logits_BV, sampler, cache.lengths_B, _recent(prompts), allowed_V, processing, top
    )
    active_B = jax.device_put(np.ones(len(prompts), bool))
    slots = Slots(cache, chosen[0], recent_BW, sampler, active_B, processing, top)
    return slots, *(array[:, None] for array in chosen)


def _recent(prompts) -> jax.Array:
    recent = np.full((len(prompts), PENALTY_WINDOW), -1, np.int32)
    for row, prompt in zip(recent, prompts):
        last = prompt[-PENALTY_WINDOW:]
        row[len(row) - len(last) :] = last
    return jnp.asarray(recent)


def _allowed(vocabulary: int, suppressed_ids) -> jax.Array | None:
    """The tokens that may be generated, bool [V]; None, which costs nothing, where all may."""
    if not suppressed_ids:
        return None
    allowed = np.ones(vocabulary, bool)
    allowed[list(suppressed_ids)] = False
    return jnp.asarray(allowed)


def _number(device: Any) -> int:
    return device.id


class Program:
    """A jitted step of one model; it is called without the model's arrays.

    Attributes:
        jitted: the jitted function; its first argument is `leaves`. Use it to lower or to count
            what is compiled.
        leaves: the model's arrays.
    """

    def __init__(self, function: collections.abc.Callable, leaves: list, **options: Any):
        self.jitted, self.leaves = jax.jit(function, **options), leaves

    def __call__(self, *args):
        """Runs the step on the model's arrays."""
        return self.jitted(self.leaves, *args)

    def with_leaves(self, leaves: list) -> "Program":
        """Returns the same step with other arrays of the model."""
        return _with_leaves(self, leaves)


class DecodeProgram:
    """The jitted `decode`: the cache is donated, and only the fields that change are returned.

    Passing the sampler through the program would cost 25 us of the host's time per dispatch.
    """

    def __init__(self, merge: collections.abc.Callable, leaves: list, allowed_V):
        def changed(leaves, cache, rest, allowed_V, count):
            slots = dataclasses.replace(rest, cache=cache)
            slots, *chosen = decode(merge, leaves, slots, allowed_V, count)
            return slots.cache, slots.last_B, slots.recent_BW, slots.processing, *chosen

        self.jitted = jax.jit(changed, donate_argnums=1, static_argnums=4)
        self.leaves, self.allowed_V = leaves, allowed_V

    def arguments(self, slots: Slots, count: int) -> tuple:
        """The arguments of `jitted`."""
        rest = dataclasses.replace(slots, cache=None)
        return self.leaves, slots.cache, rest, self.allowed_V, count

    def __call__(self, slots: Slots, count: int):
        """Runs the step, see `decode`."""
        cache, last_B, recent_BW, processing, *tokens = self.jitted(*self.arguments(slots, count))
        unchanged = slots.sampler, slots.active_B
        changed = Slots(cache, last_B, recent_BW, *unchanged, processing, slots.top)
        return changed, *tokens

    def with_leaves(self, leaves: list) -> "DecodeProgram":
        """Returns the same step with other arrays of the model."""
        return _with_leaves(self, leaves)


def _with_leaves(program, leaves):
    """Copies a program, whose jitted function the copy shares."""
    program = copy.copy(program)
    program.leaves = leaves
    return program


class Steps:
    """The jitted steps of one decoder. They use the arrays that it had, not copies of them.

    Attributes:
        config: the decoder's configuration.
        leaves: the decoder's arrays, flat.
        allowed_V: bool [V], the tokens that may be generated, or None for all.
        chunk: tokens of the longest piece of a prompt.
        prefill: (cache, tokens_BT, added_B, before_BV) -> (logits_BV, cache), see `prefill`. The
            cache is donated.
        decode: (slots, count) -> (slots, ids_BT, logprobs_BT), see `decode`. Their cache is
            donated.
        score: (ids_BT, first) -> log-probabilities, see `score`.
    """

    def __init__(self, decoder: Decoder, suppressed_ids: collections.abc.Set[int] = frozenset()):
        """Splits the decoder; nothing is compiled yet.

        Args:
            decoder: the model.
            suppressed_ids: tokens that are never generated.
        """
        self.config, self._cache_dtype = decoder.config, decoder.numerics.cache_dtype
        self.allowed_V = _allowed(self.config.vocabulary, suppressed_ids)
        on_cpu = jax.default_backend() == "cpu"
        self.chunk = PREFILL_CHUNK if on_cpu else PREFILL_CHUNK_ON_GPUS
        self._suppressed_ids, self._flat = suppressed_ids, FlatDecoder.of(decoder)
        self.leaves, merge = self._flat.leaves, self._flat.merge

        def program(function, **options):
            return Program(functools.partial(function, merge), self.leaves, **options)

        self.prefill = program(prefill, donate_argnums=1)
        self.decode = DecodeProgram(merge, self.leaves, self.allowed_V)
        self.score = program(score, static_argnums=2)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Makes an empty cache where the weights are."""
        config, dtype = self.config, self._cache_dtype
        return init_cache(config, batch, length, dtype, placement_of(self.leaves))

    def of(self, decoder: Decoder) -> "Steps":
        """Returns the steps of a decoder's present arrays, these ones where they use them already.

        Nothing is compiled again for a decoder of the same structure.
        """
        if self._flat.is_of(decoder):
            return self
        flat = FlatDecoder.of(decoder)
        if flat.structure != self._flat.structure:
            return Steps(decoder, self._suppressed_ids)
        steps, leaves = copy.copy(self), flat.leaves
        steps._flat, steps.leaves = flat, leaves
        steps.prefill, steps.decode, steps.score = (
            program.with_leaves(leaves) for program in (self.prefill, self.decode, self.score)
        )
        return steps

    def cache_bytes(self, batch: int, length: int) -> int:
        """Bytes of a cache of `batch` sequences with `length` slots each; nothing is allocated.

        Of several devices it is what one holds.
        """
        cache = jax.eval_shape(lambda: self.init_cache(batch, length))
        return bytes_on_a_device(cache, placement_of(self.leaves))

    @property
    def device(self) -> Any:
        """A device that holds the weights; None if they are free to move."""
        placement = placement_of(self.leaves)
        return None if placement is None else min(placement.addressable_devices, key=_number)

    def empty_slots(
        self,
        batch: int,
        length: int,
        processor: LogitsProcessor | None = None,
        top: int = 0,
    ) -> Slots:
        """Slots without sequences, for sequences with the function of a logits processor.

        top: see `Slots`.
        """
        return Slots(
            self.init_cache(batch, length),
            jax.device_put(np.zeros(batch, np.int32)),
            jax.device_put(np.full((batch, PENALTY_WINDOW), -1, np.int32)),
            Sampler.of([SamplingParams(temperature=0)] * batch),
            jax.device_put(np.zeros(batch, bool)),
            Processing.of([processor] * batch, [[]] * batch, length),
            top,
        )

    def padded(self, tokens: int) -> int:
        """Slots that a prompt of so many tokens takes with its padding, at most."""
        return sum(padded for _, padded in self._pieces(tokens))

    def prefill_prompts(
        self,
        prompts: collections.abc.Sequence[list[int]],
        cache: Cache,
        known: int = 0,
        snapshots: Snapshots | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Computes prompts, piece by piece.

        Args:
            prompts: token ids, at least one after those that are known.
            cache: has room for `padded` tokens of the longest prompt after the known ones. It is
                donated.
            known: tokens of each prompt that the cache holds already.
            snapshots: of the only prompt. One is taken after each piece, if the cache needs them.
                The last tokens of a prompt may then be a piece of their own, so that the same
                prompt, or one with another end, does not have to be computed as a whole.

        Returns:
            (logits after the last token of each prompt, float32 [B, V]; the cache).
        """
        lengths = np.array([len(prompt) - known for prompt in prompts])
        longest, first = int(lengths.max()), 0
        tokens = np.zeros((len(prompts), longest), np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt) - known] = prompt[known:]
        logits_BV = jnp.zeros((len(prompts), self.config.vocabulary), jnp.float32)
        pieces = self._pieces(longest)
        if snapshots is not None:
            snapshots.prompt_tokens = known + longest
            last = SMALLEST_BUCKET
            if longest > SNAPSHOT_INTERVAL and snapshots.split(cache, known + longest, last):
                pieces = self._pieces(longest - last) + self._pieces(last)
        for count, padded in pieces:
            piece = np.pad(tokens[:, first : first + count], ((0, 0), (0, padded - count)))
            added = np.clip(lengths - first, 0, count).astype(np.int32)
            logits_BV, cache = self.prefill(cache, piece, added, logits_BV)
            first += count
            if snapshots is not None:
                snapshots.take(cache, known + first)
        return logits_BV, cache

    def _pieces(self, length: int) -> list[tuple[int, int]]:
        """Returns the pieces of a prompt: (tokens, tokens with padding) of each.

        They are full chunks, then the rest, padded to a power of two.
        """
        full, rest = divmod(length, self.chunk)
        padded_rest = max(SMALLEST_BUCKET, 1 << (rest - 1).bit_length()) if rest else 0
        return [(self.chunk, self.chunk)] * full + ([(rest, padded_rest)] if rest else [])
