"""Token ids in, token ids out.

Weights, cache, logits and sampling stay on the device; only finished ids come back.

The model is split once and every step is `jax.jit` on its flat leaves: one dispatch of 576 planes
costs 0.5 ms so, against 10 ms through `nnx.jit`. Prompts are padded to a few lengths and the cache
grows in a few sizes, so that little is ever compiled.
"""

import collections
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rocmforge_jax.generate.sampling import PENALTY_WINDOW, Sampler, SamplingParams, sample
from rocmforge_jax.models import Decoder
from rocmforge_jax.nn import Cache, LayerCache

#: Longest piece of a prompt that is computed at once, on CPUs and on others; a longer prompt comes
#: in several. A GPU dequantises every weight once for each piece.
PREFILL_CHUNK, PREFILL_CHUNK_ON_GPUS = 512, 2048
#: Shorter pieces are padded to a power of two from here on.
SMALLEST_BUCKET = 16
#: Slots of the smallest cache; a cache grows to the next power of two.
SMALLEST_CACHE = 256
#: New tokens that a fresh cache has room for, if as many are asked for; beyond that it grows.
EXPECTED_TOKENS = 1024
#: Tokens that one dispatch generates.
TOKENS_PER_DISPATCH = 8


@dataclasses.dataclass(frozen=True)
class Generated:
    """What one dispatch added to one sequence.

    ids: the new tokens, a stop token not among them. logprobs: their log-probabilities under the
    model. finish_reason: None while it goes on; "stop" at a stop token, "length" at max_tokens,
    "context" when the context is full.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None = None


def bucket(length: int, smallest: int) -> int:
    """The power of two that is at least `length` and `smallest`."""
    return max(smallest, 1 << (length - 1).bit_length())


class Engine:
    """Generates with a Decoder. It keeps the decoder's arrays, not a copy of them.

    context_length: tokens a sequence may have, prompt and answer together; default what the model
    was trained for, a warning beyond that. ahead: dispatches that are begun before the tokens of
    the one before are read, default 1 on GPUs, which are never idle then, and 0 on CPUs, where what
    is computed past a stop token delays the next prompt. After a single prompt the cache is kept: a
    prompt that begins as that text went on computes only what is new.
    """

    def __init__(
        self, decoder: Decoder, *, context_length: int | None = None, ahead: int | None = None
    ):
        self.config = decoder.config
        self.context_length = (
            self.config.context_length if context_length is None else context_length
        )
        if self.context_length < 2:
            raise ValueError(f"context_length must be at least 2, got {self.context_length}")
        if self.context_length > self.config.context_length:
            warnings.warn(
                f"a context of {self.context_length} tokens is longer than the"
                f" {self.config.context_length} the model was trained for",
                stacklevel=3,
            )
        self._init_cache = jax.jit(
            decoder.init_cache, static_argnums=(0, 1)
        )  # one launch, not two a layer
        graphdef, state = nnx.split(decoder)
        self._leaves, treedef = jax.tree.flatten(state)

        def merge(leaves):
            return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))

        self._prefill = jax.jit(functools.partial(_prefill, merge), donate_argnums=1)
        self._decode = jax.jit(
            functools.partial(_decode, merge), static_argnums=5, donate_argnums=1
        )
        self._score = jax.jit(functools.partial(_score, merge), static_argnums=2)
        self._kept = _Kept([], None)
        on_cpu = jax.default_backend() == "cpu"
        self._ahead = (0 if on_cpu else 1) if ahead is None else ahead
        self._chunk = PREFILL_CHUNK if on_cpu else PREFILL_CHUNK_ON_GPUS

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
        *,
        max_tokens: int | None = None,
        stop_ids: frozenset[int] | set[int] = frozenset(),
    ) -> Iterator[list[Generated]]:
        """Continue each prompt.

        Yields, dispatch after dispatch, what it added to each sequence, until all have finished.

        params: one for all or one each. max_tokens: most new tokens of each sequence, None for as
        many as the context holds. ValueError, before anything is computed, for prompts that are
        empty, too long or have ids outside the vocabulary. An interrupted or abandoned iterator
        leaves the engine usable.
        """
        params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        self._check(prompts, params, max_tokens)
        return self._generate(
            [list(map(int, prompt)) for prompt in prompts], params, max_tokens, frozenset(stop_ids)
        )

    def _check(self, prompts, params, max_tokens):
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
            if not len(prompt):
                raise ValueError(f"prompt {number} is empty: generation needs at least one token")
            if len(prompt) >= self.context_length:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens, the context is"
                    f" {self.context_length} with at least one for the answer"
                )
            if not np.issubdtype(np.asarray(prompt).dtype, np.integer):
                raise ValueError(
                    f"prompt {number} must be token ids, integers, got {np.asarray(prompt).dtype}"
                )
            low, high = min(prompt), max(prompt)
            if low < 0 or high >= self.config.vocabulary:
                raise ValueError(
                    f"prompt {number} has the id {low if low < 0 else high}, the vocabulary has"
                    f" {self.config.vocabulary}"
                )
        for number, one in enumerate(params):
            if (highest := max(one.logit_bias, default=0)) >= self.config.vocabulary:
                raise ValueError(
                    f"logit_bias {number} has the id {highest}, the vocabulary has"
                    f" {self.config.vocabulary}"
                )

    def _generate(self, prompts, params, max_tokens, stop_ids):
        sampler, lengths = Sampler.of(params), [len(prompt) for prompt in prompts]
        open_ = [_Open(self.context_length - length, max_tokens, stop_ids) for length in lengths]
        longest = max(length + one.left for length, one in zip(lengths, open_))
        texts, cache = [list(prompt) for prompt in prompts], None
        try:
            logits_BV, cache = self.prefill(
                prompts, slots=min(longest, max(lengths) + EXPECTED_TOKENS)
            )
            tokens_B, logprobs_B, recent_BW = _first(
                logits_BV, sampler, cache.lengths_B, _recent(prompts)
            )
            filled, running = (
                max(lengths),
                collections.deque([(tokens_B[:, None], logprobs_B[:, None])]),
            )
            while True:
                # Before the host reads what a dispatch gave, the next one is on its way: a device
                # that waits for neither is never idle.
                while len(running) <= self._ahead and _longer_than(
                    sum(ids.shape[1] for ids, _ in running), open_
                ):
                    filled += TOKENS_PER_DISPATCH
                    cache = self._grown(cache, filled)
                    tokens_B, cache, recent_BW, *step = self._decode(
                        self._leaves, cache, tokens_B, recent_BW, sampler, TOKENS_PER_DISPATCH
                    )
                    running.append(step)
                step_ids, step_logprobs = (
                    np.asarray(array).tolist() for array in running.popleft()
                )
                added = [
                    one.take(ids, logprobs)
                    for one, ids, logprobs in zip(open_, step_ids, step_logprobs)
                ]
                for text, ids in zip(texts, step_ids):
                    text += ids
                yield added
                if all(one.finish_reason for one in open_):
                    return
        finally:
            if cache is not None and len(prompts) == 1:
                self._kept = _Kept(texts[0], cache)

    def prefill(
        self, prompts: Sequence[Sequence[int]], *, slots: int = 0
    ) -> tuple[jax.Array, Cache]:
        """Compute prompts: the logits after the last token of each, float32 [B, V], and the filled
        cache.

        slots: what the cache should have room for.
        """
        cache, known = self._begin(prompts)
        lengths = np.array([len(prompt) - known for prompt in prompts])
        pieces = _pieces(int(lengths.max()), self._chunk)
        tokens = np.zeros((len(prompts), sum(pieces)), np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt) - known] = prompt[known:]
        room = self._cache_length(max(known + tokens.shape[1], slots))
        cache = (
            self._init_cache(len(prompts), room)
            if cache is None
            else self._grown(cache, known + tokens.shape[1])
        )
        logits_BV, start = jnp.zeros((len(prompts), self.config.vocabulary), jnp.float32), 0
        for piece in pieces:
            added = np.clip(lengths - start, 0, piece).astype(np.int32)
            logits_BV, cache = self._prefill(
                self._leaves, cache, tokens[:, start : start + piece], added, logits_BV
            )
            start += piece
        return logits_BV, cache

    def score(self, ids_BT: np.ndarray, first: int = 0) -> jax.Array:
        """Log-probabilities that the model gives to ids[:, first + 1:] after all before them:
        float32 [B, T - 1 - first].
        """
        return self._score(self._leaves, jnp.asarray(ids_BT, jnp.int32), first)

    def warm_up(self, prompt_tokens: int = SMALLEST_BUCKET, batch: int = 1) -> None:
        """Compile what a prompt of this length and a batch of this size need, so that the first
        answer does not wait for it.
        """
        prompts = [[0] * prompt_tokens] * batch
        for _ in self.generate(
            prompts, max_tokens=min(TOKENS_PER_DISPATCH, self.context_length - prompt_tokens)
        ):
            pass
        self.forget()

    def forget(self) -> None:
        """Let go of the cache that was kept for the next prompt."""
        self._kept = _Kept([], None)

    def _begin(self, prompts) -> tuple[Cache | None, int]:
        """The kept cache if it holds the beginning of a single prompt, and how many of its tokens
        that saves.
        """
        kept, self._kept = self._kept, _Kept([], None)
        if len(prompts) > 1 or not kept.usable():
            return None, 0
        known = min(kept.common(prompts[0]), len(prompts[0]) - 1)
        if known < SMALLEST_BUCKET:
            return None, 0
        return dataclasses.replace(kept.cache, lengths_B=jnp.array([known], jnp.int32)), known

    def _cache_length(self, slots: int) -> int:
        """The size of a cache with at least `slots` slots: a power of two, no larger than the
        context can use.
        """
        return max(
            slots, min(bucket(slots, SMALLEST_CACHE), self.context_length + TOKENS_PER_DISPATCH)
        )

    def _grown(self, cache: Cache, slots: int) -> Cache:
        """The cache, or a copy with at least `slots` slots."""
        return cache if slots <= cache.length else _grow(cache, self._cache_length(slots))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The cache of the last text.

    ids: its tokens; those in the cache are the first ones, the last few may not be in it yet.
    """

    ids: list[int]
    cache: Cache | None

    def usable(self) -> bool:
        """An interrupted dispatch may have taken the cache with it."""
        return self.cache is not None and not any(
            leaf.is_deleted() for leaf in jax.tree.leaves(self.cache)
        )

    def common(self, prompt: list[int]) -> int:
        """How many tokens at the start of a prompt the cache holds."""
        held = min(len(prompt), len(self.ids), int(self.cache.lengths_B[0]))
        return next((i for i in range(held) if prompt[i] != self.ids[i]), held)


class _Open:
    """A sequence that is being generated: how much it may still grow, and why it stopped."""

    def __init__(self, room: int, max_tokens: int | None, stop_ids: frozenset[int]):
        self.left = room if max_tokens is None else min(room, max_tokens)
        self._at_limit = "context" if self.left == room and max_tokens != room else "length"
        self._stop_ids = stop_ids
        self.finish_reason = None

    def take(self, ids: list[int], logprobs: list[float]) -> Generated:
        """The part of a dispatch's tokens that belongs to the sequence."""
        if self.finish_reason:
            return Generated([], [], self.finish_reason)
        ids = ids[: self.left]
        count = next((i for i, id in enumerate(ids) if id in self._stop_ids), len(ids))
        self.left -= count
        if count < len(ids):
            self.finish_reason = "stop"
        elif self.left == 0:
            self.finish_reason = self._at_limit
        return Generated(ids[:count], logprobs[:count], self.finish_reason)


def _longer_than(tokens: int, open_: list[_Open]) -> bool:
    """Whether a sequence may need more than so many tokens."""
    return any(one.finish_reason is None and one.left > tokens for one in open_)


def _pieces(length: int, chunk: int) -> list[int]:
    """Padded lengths of the pieces of a prompt: full chunks, then a power of two."""
    full, rest = divmod(length, chunk)
    return [chunk] * full + ([bucket(rest, SMALLEST_BUCKET)] if rest else [])


def _prefill(merge, leaves, cache, tokens_BT, added_B, before_BV):
    """One piece of each prompt. A sequence that has no token in it keeps the logits it had."""
    logits_BV, cache = merge(leaves)(tokens_BT, cache, lengths_B=added_B, last_only=True)
    return jnp.where(added_B[:, None] > 0, logits_BV, before_BV), cache


def _decode(merge, leaves, cache, tokens_B, recent_BW, sampler, count):
    """Take the last tokens in and generate `count` more.

    -> (the last tokens, the cache, the recent tokens, ids [B, count], log-probabilities [B,
    count]).
    """
    decoder = merge(leaves)

    def step(carry, _):
        cache, tokens_B, recent_BW = carry
        logits_BV, cache = decoder(tokens_B[:, None], cache, last_only=True)
        tokens_B, logprobs_B, recent_BW = _first(
            logits_BV, sampler, cache.lengths_B, recent_BW
        )  # traced once
        return (cache, tokens_B, recent_BW), (tokens_B, logprobs_B)

    carry, (ids_TB, logprobs_TB) = jax.lax.scan(step, (cache, tokens_B, recent_BW), length=count)
    cache, tokens_B, recent_BW = carry
    return tokens_B, cache, recent_BW, ids_TB.T, logprobs_TB.T


def _score(merge, leaves, ids_BT, first):
    logits_BTV, _ = merge(leaves)(ids_BT[:, :-1])
    logits_BTV, targets_BT = logits_BTV[:, first:], ids_BT[:, first + 1 :]
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def _next(logits_BV, sampler, positions_B, recent_BW):
    tokens_B, logprobs_B = sample(logits_BV, sampler, positions_B, recent_BW)
    return tokens_B, logprobs_B, jnp.concatenate([recent_BW[:, 1:], tokens_B[:, None]], axis=1)


_first = jax.jit(_next)


def _recent(prompts) -> jax.Array:
    """The last tokens of each prompt, int32 [B, PENALTY_WINDOW], -1 before its start."""
    recent = np.full((len(prompts), PENALTY_WINDOW), -1, np.int32)
    for row, prompt in zip(recent, prompts):
        last = prompt[-PENALTY_WINDOW:]
        row[len(row) - len(last) :] = last
    return jnp.asarray(recent)


@functools.partial(jax.jit, static_argnums=1)
def _grow(cache: Cache, length: int) -> Cache:
    more = length - cache.length

    def pad(layer):
        return LayerCache(
            jnp.pad(layer.keys, ((0, 0), (0, 0), (0, 0), (0, more))),
            jnp.pad(layer.values, ((0, 0), (0, 0), (0, more), (0, 0))),
        )

    return Cache(tuple(map(pad, cache.layers)), cache.lengths_B)
