"""The jitted steps of generation: pure functions of a model's flat arrays.

All jit boundaries of generation are in this module. The model is split once, and every step is
`jax.jit` on its flat leaves, because `nnx.jit` adds overhead to each dispatch (measured:
docs/kernels.md). Everything a step reads or changes is in one pytree, `Slots`. So a new prompt,
temperature or set of active sequences compiles nothing.
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

#: The largest chunk of a prompt, in tokens. A GPU dequantises every weight once per chunk, so its
#: chunks are larger, and those of a prompt of at least LONG_PROMPT tokens larger still.
PREFILL_CHUNK, PREFILL_CHUNK_ON_GPUS, LONG_CHUNK = 512, 2048, 8192
LONG_PROMPT = 16384
#: Smaller chunks are padded to a power of two, but at least to this size.
SMALLEST_BUCKET = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The sequences of a batch on the device: the input and output of decoding.

    A slot without a sequence is inactive. A step computes it like the others, but its length does
    not change, so it never outgrows the cache. Its other fields and its states are unspecified. A
    sequence that enters replaces them all. An inactive slot is never resumed.

    Attributes:
        cache: The state of every layer, [B, ...] each, and `lengths_B`, int32 [B], the number of
            tokens in the state, 0 to cache.length. Example: 7 after a prompt of 7 tokens.
        last_B: int32 [B], 0 to vocabulary - 1: the newest token, which is not in the cache yet.
        recent_BW: int32 [B, PENALTY_WINDOW], -1 to vocabulary - 1: the newest tokens, the latest
            one last, preceded by -1 for missing ones. Penalties use them.
        sampler: The sampling parameters, [B, ...] each; see `Sampler`.
        active_B: bool [B]: whether a sequence occupies the slot.
        processing: The logits processor of the sequences, or None.
        top: How many of the most likely tokens are returned with each chosen one. Static.
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
        """The number of slots, B."""
        return self.cache.batch

    @property
    def length(self) -> int:
        """The number of tokens per sequence that the cache has room for."""
        return self.cache.length

    def with_row(self, b, other: "Slots") -> "Slots":
        """Returns a copy with slot `b`, int32 [], replaced by the only slot of `other`."""
        rows = jax.tree.map(
            lambda array, row: jax.lax.dynamic_update_slice_in_dim(array, row, b, 0),
            *(dataclasses.replace(slots, cache=None) for slots in (self, other)),
        )
        return dataclasses.replace(rows, cache=self.cache.with_row(b, other.cache))

    def grown(self, length: int) -> "Slots":
        """Returns a copy whose cache has room for `length` tokens per sequence."""
        processing = self.processing
        processing = None if processing is None else processing.grown(length)
        return dataclasses.replace(self, cache=self.cache.grown(length), processing=processing)

    def with_bias_width(self, width: int) -> "Slots":
        """Returns the slots with room for at least `width` tokens of logit_bias each."""
        if width <= self.sampler.bias_width:
            return self
        return dataclasses.replace(self, sampler=self.sampler.widened(width))


def prefill(merge, leaves, cache: Cache, tokens_BT, added_B, before_BV):
    """Computes one padded chunk of each prompt.

    Args:
        merge: Function from leaves to the decoder.
        leaves: The decoder's arrays.
        cache: Contains the tokens before the chunk and has room for T more.
        tokens_BT: int32 [B, T], the chunk, padded at its end.
        added_B: int32 [B], 0 to T: the number of real tokens of each sequence.
        before_BV: float32 [B, V], the logits of the previous chunk.

    Returns:
        (the logits after the last real token, float32 [B, V]; the cache). A sequence without a
        token in this chunk keeps `before_BV`.
    """
    decoder = merge(leaves)
    logits_BV, cache = decoder(tokens_BT, cache, lengths_B=added_B, last_only=True)
    logits_BV = on_every_device(logits_BV, decoder)
    return jnp.where(added_B[:, None] > 0, logits_BV, before_BV), cache


def decode(merge, leaves, slots: Slots, allowed_V, count: int):
    """Generates `count` tokens per sequence, starting from the last token of each.

    Args:
        merge: Function from leaves to the decoder.
        leaves: The decoder's arrays.
        slots: The sequences. The cache must have room for `count` more tokens of each active one.
        allowed_V: See `sample`.
        count: The number of tokens.

    Returns:
        (the slots; ids, int32 [B, count]; log-probabilities, float32 [B, count]). If `slots.top` is
        set, also the ids and log-probabilities of the most likely tokens, [B, count, top] each. The
        results of an inactive slot are unspecified.
    """
    decoder, added_B = merge(leaves), slots.active_B.astype(jnp.int32)

    def step(carry, _):
        cache, last_B, recent_BW, processing = carry
        if processing is not None:
            processing = processing.with_tokens(last_B, cache.lengths_B)
        logits_BV, after = decoder(last_B[:, None], cache, last_only=True)
        logits_BV = on_every_device(logits_BV, decoder)
        # The decoder advances the length of every slot, so reset that of inactive ones. Passing
        # `lengths_B` to the decoder instead would add a gather of the last token.
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
    """Returns the log-probabilities of ids[:, first + 1:], float32 [B, T - 1 - first].

    Each is conditioned on all tokens before it.
    """
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

    See `sample` for the other arguments.

    Returns:
        (chosen, recent tokens with the new ones, processor). `chosen` is (tokens,
        log-probabilities). If `top` is set, it also has the ids and log-probabilities [B, top] of
        the most likely tokens under the model's own distribution, in descending order.
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
    """Returns a copy of a pytree with each row repeated `count` times, consecutively.

    `jnp.copy` forces new buffers even if nothing is repeated, so the copy may be donated.
    """
    return jax.tree.map(lambda array: jnp.repeat(jnp.copy(array), count, axis=0), tree)


@functools.partial(jax.jit, static_argnums=6)
def _sample_first(*args):
    """Does what `sample_next` does, and returns `chosen` with an axis for one token as well.

    Without it, each array would need a program for its new axis.
    """
    chosen, recent_BW, processing = sample_next(*args)
    return chosen[0], recent_BW, processing, [array[:, None] for array in chosen]


#: insert(slots, b, other): `Slots.with_row` in place, because the slots are donated.
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
        cache: The cache of the prompts.
        prompts: Token ids, B lists.
        params: The sampling parameters of each sequence.
        bias_width: The least room for tokens of logit_bias; see `Sampler.of`.
        allowed_V: See `sample`.
        processors: The logits processor of each sequence.
        top: See `Slots`.

    Returns:
        (slots, all active; then the other results of `decode`, for one token).
    """
    sampler = Sampler.of(params, bias_width)
    processing = Processing.of(processors, prompts, cache.length)
    last_B, recent_BW, processing, chosen = _sample_first(
        logits_BV, sampler, cache.lengths_B, _recent(prompts), allowed_V, processing, top
    )
    active_B = jax.device_put(np.ones(len(prompts), bool))
    slots = Slots(cache, last_B, recent_BW, sampler, active_B, processing, top)
    return slots, *chosen


def _recent(prompts) -> jax.Array:
    recent = np.full((len(prompts), PENALTY_WINDOW), -1, np.int32)
    for row, prompt in zip(recent, prompts):
        last = prompt[-PENALTY_WINDOW:]
        row[len(row) - len(last) :] = last
    return jax.device_put(recent)


def _allowed(vocabulary: int, suppressed_ids) -> jax.Array | None:
    """Returns the tokens that may be generated, bool [V], or None for all, which costs nothing."""
    if not suppressed_ids:
        return None
    allowed = np.ones(vocabulary, bool)
    allowed[list(suppressed_ids)] = False
    return jax.device_put(allowed)


def _number(device: Any) -> int:
    return device.id


class Program:
    """A jitted step of one model, called without the model's arrays.

    Attributes:
        jitted: The jitted function; its first argument is `leaves`. Use it to lower the step or to
            count compilations.
        leaves: The model's arrays.
    """

    def __init__(self, function: collections.abc.Callable, leaves: list, **options: Any):
        self.jitted, self.leaves = jax.jit(function, **options), leaves

    def __call__(self, *args):
        """Runs the step on the model's arrays."""
        return self.jitted(self.leaves, *args)

    def with_leaves(self, leaves: list) -> "Program":
        """Returns the same step with other model arrays."""
        return _with_leaves(self, leaves)


class DecodeProgram:
    """The jitted `decode`. The cache is donated, and only fields that change are returned.

    Returning the sampler too would add host time to each dispatch (measured: docs/kernels.md).
    """

    def __init__(self, merge: collections.abc.Callable, leaves: list, allowed_V):
        def changed(leaves, cache, rest, allowed_V, count):
            slots = dataclasses.replace(rest, cache=cache)
            slots, *chosen = decode(merge, leaves, slots, allowed_V, count)
            return slots.cache, slots.last_B, slots.recent_BW, slots.processing, *chosen

        self.jitted = jax.jit(changed, donate_argnums=1, static_argnums=4)
        self.leaves, self.allowed_V = leaves, allowed_V

    def arguments(self, slots: Slots, count: int) -> tuple:
        """Returns the arguments of `jitted`."""
        rest = dataclasses.replace(slots, cache=None)
        return self.leaves, slots.cache, rest, self.allowed_V, count

    def __call__(self, slots: Slots, count: int):
        """Runs the step; see `decode`."""
        cache, last_B, recent_BW, processing, *tokens = self.jitted(*self.arguments(slots, count))
        unchanged = slots.sampler, slots.active_B
        changed = Slots(cache, last_B, recent_BW, *unchanged, processing, slots.top)
        return changed, *tokens

    def with_leaves(self, leaves: list) -> "DecodeProgram":
        """Returns the same step with other model arrays."""
        return _with_leaves(self, leaves)


def _with_leaves(program, leaves):
    """Copies a program; the copy shares the jitted function."""
    program = copy.copy(program)
    program.leaves = leaves
    return program


class Steps:
    """The jitted steps of one decoder. They use its arrays without copying them.

    Attributes:
        config: The decoder's configuration.
        leaves: The decoder's arrays, flat.
        allowed_V: bool [V], the tokens that may be generated, or None for all.
        chunk: The largest chunk of a prompt, in tokens.
        long_chunk: The largest chunk of a long prompt.
        prefill: (cache, tokens_BT, added_B, before_BV) -> (logits_BV, cache); see `prefill`. The
            cache is donated.
        decode: (slots, count) -> (slots, ids_BT, logprobs_BT), see `decode`. The cache
            of the slots is donated.
        score: (ids_BT, first) -> log-probabilities; see `score`.
    """

    def __init__(self, decoder: Decoder, suppressed_ids: collections.abc.Set[int] = frozenset()):
        """Splits the decoder. Nothing is compiled yet.

        Args:
            decoder: The model.
            suppressed_ids: Tokens that are never generated.
        """
        self.config, self._cache_dtype = decoder.config, decoder.numerics.cache_dtype
        self.allowed_V = _allowed(self.config.vocabulary, suppressed_ids)
        on_cpu = jax.default_backend() == "cpu"
        self.chunk = PREFILL_CHUNK if on_cpu else PREFILL_CHUNK_ON_GPUS
        self.long_chunk = PREFILL_CHUNK if on_cpu else LONG_CHUNK
        self._suppressed_ids, self._flat = suppressed_ids, FlatDecoder.of(decoder)
        self.leaves, merge = self._flat.leaves, self._flat.merge

        def program(function, **options):
            return Program(functools.partial(function, merge), self.leaves, **options)

        self.prefill = program(prefill, donate_argnums=1)
        self.decode = DecodeProgram(merge, self.leaves, self.allowed_V)
        self.score = program(score, static_argnums=2)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Returns an empty cache on the devices of the weights."""
        config, dtype = self.config, self._cache_dtype
        return init_cache(config, batch, length, dtype, placement_of(self.leaves))

    def of(self, decoder: Decoder) -> "Steps":
        """Returns the steps for a decoder's current arrays; `self` if it already uses them.

        A decoder with the same structure compiles nothing again.
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

    @property
    def checksums(self) -> list[tuple[str, int]]:
        """The name and a checksum of each weight; see `FlatDecoder.checksums`."""
        return self._flat.checksums

    def cache_bytes(self, batch: int, length: int) -> int:
        """Returns the size in bytes of a cache of `batch` sequences with `length` tokens each.

        Nothing is allocated. On several devices, it is the size of one device's share.
        """
        cache = jax.eval_shape(lambda: self.init_cache(batch, length))
        return bytes_on_a_device(cache, placement_of(self.leaves))

    @property
    def device(self) -> Any:
        """A device that holds the weights; None if they are not committed to devices."""
        placement = placement_of(self.leaves)
        return None if placement is None else min(placement.addressable_devices, key=_number)

    def empty_slots(
        self,
        batch: int,
        length: int,
        processor: LogitsProcessor | None = None,
        top: int = 0,
    ) -> Slots:
        """Returns slots without sequences.

        Args:
            batch: The number of slots.
            length: The number of tokens that the cache has room for, per sequence.
            processor: The logits processor of the sequences, or None.
            top: See `Slots`.
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
        """Returns how many cache positions a prompt of `tokens` tokens needs, including padding."""
        return sum(padded for _, padded in self._pieces(tokens))

    def prefill_prompts(
        self,
        prompts: collections.abc.Sequence[list[int]],
        cache: Cache,
        known: int = 0,
        snapshots: Snapshots | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Computes prompts in chunks.

        Args:
            prompts: Token ids, at least one after the known ones.
            cache: The cache, with room for `padded` tokens of the longest prompt after the known
                ones. It is donated.
            known: The number of tokens of each prompt that the cache already contains.
            snapshots: The snapshots of a single prompt. One is taken after each chunk, if the cache
                needs them. The last tokens of the prompt may then form a separate chunk. So the
                same prompt, or one with another end, need not be computed completely.

        Returns:
            (the logits after the last token of each prompt, float32 [B, V]; the cache).
        """
        lengths = np.array([len(prompt) - known for prompt in prompts])
        longest, first = int(lengths.max()), 0
        tokens = np.zeros((len(prompts), longest), np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt) - known] = prompt[known:]
        shape = len(prompts), self.config.vocabulary
        logits_BV = jax.lax.broadcast(np.float32(0), shape)  # one program, `jnp.zeros` has two
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
        """Returns the chunks of a prompt: (tokens, tokens with padding) of each.

        They are full chunks, then the rest, padded to a power of two.
        """
        pieces, rest = [], length
        for chunk in (self.long_chunk, self.chunk) if length >= LONG_PROMPT else (self.chunk,):
            full, rest = divmod(rest, chunk)
            pieces += [(chunk, chunk)] * full
        if rest:
            pieces.append((rest, max(SMALLEST_BUCKET, 1 << (rest - 1).bit_length())))
        return pieces
