"""Samples the next token, on the device.

Every parameter is an array, so a new temperature compiles nothing.

The order is llama.cpp's: logit bias and penalties, then top-k, typical, top-p and min-p, then the
temperature. Nothing is sorted. Instead, a radix search finds the threshold that keeps k tokens or a
fraction p of the probability, a few bits at a time. This is exact and fast for any k and p. Tokens
that tie with the last one kept are kept as well. Steps that no sequence needs are skipped.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.generate.params import PENALTY_WINDOW, SamplingParams

#: The smallest normal float32, which is not flushed to zero, and the largest finite one.
_TINY, _HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
#: Larger parameters are clipped to this, so that a penalty times the window is finite.
_LARGEST = _HUGE / (4 * PENALTY_WINDOW)

_INTEGERS = ("top_k", "penalty_last_n")
_NUMBERS = (
    "temperature",
    "typical_p",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """The sampling parameters of B sequences on the device, [B] each, float32 or int32.

    The ranges are those of `SamplingParams`.

    Attributes:
        seed: uint32 [B, 2], the high and the low word.
        bias_ids: int32 [B, n], the tokens of logit_bias, padded with -1. n is a power of two or 0.
        bias: float32 [B, n], the numbers added to their logits.
    """

    temperature: jax.Array
    top_k: jax.Array
    typical_p: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    penalty_last_n: jax.Array
    seed: jax.Array
    bias_ids: jax.Array
    bias: jax.Array

    @classmethod
    def of(cls, params: Sequence[SamplingParams], bias_width: int = 0) -> "Sampler":
        """Converts parameters to arrays with one row each.

        Args:
            params: The parameters of each sequence.
            bias_width: The least number of columns of `bias_ids` and `bias`.
        """
        arrays = {name: _float32([getattr(p, name) for p in params]) for name in _NUMBERS}
        for name in _INTEGERS:
            arrays[name] = np.array([getattr(p, name) for p in params], np.int32)
        # A logit of 0 divided by a penalty of 0 would be NaN.
        arrays["repetition_penalty"] = np.maximum(arrays["repetition_penalty"], _TINY)
        arrays["seed"] = np.array([divmod(p.seed, 2**32) for p in params], np.uint32)
        biases = [p.logit_bias or {} for p in params]
        most = max(map(len, biases))
        width = max(bias_width, 1 << (most - 1).bit_length() if most else 0)
        arrays["bias_ids"] = np.full((len(params), width), -1, np.int32)
        arrays["bias"] = np.zeros((len(params), width), np.float32)
        for row, given in enumerate(biases):
            arrays["bias_ids"][row, : len(given)] = list(given)
            arrays["bias"][row, : len(given)] = _float32(list(given.values()))
        return cls(**jax.device_put(arrays))

    @property
    def bias_width(self) -> int:
        """The number of logit_bias tokens that a row can store."""
        return self.bias.shape[1]

    def widened(self, bias_width: int) -> "Sampler":
        """Returns the same rows with at least `bias_width` columns for logit_bias."""
        more = ((0, 0), (0, max(0, bias_width - self.bias_width)))
        return dataclasses.replace(
            self,
            bias_ids=jnp.pad(self.bias_ids, more, constant_values=-1),
            bias=jnp.pad(self.bias, more),
        )


def _float32(values: Sequence[float]) -> np.ndarray:
    """Rounds numbers to float32 and clips finite ones to `_LARGEST` in magnitude."""
    wide = np.array(values, np.float64)
    return np.where(np.isinf(wide), wide, np.clip(wide, -_LARGEST, _LARGEST)).astype(np.float32)


def sample(
    logits_BV, sampler: Sampler, positions_B, recent_BW=None, allowed_V=None, processed_BV=None
):
    """Samples the next token of each sequence. Greedy ties select the lowest id.

    Args:
        logits_BV: The model's logits.
        sampler: The parameters of each sequence.
        positions_B: The number of tokens of each sequence. Seed and position determine the random
            numbers, so a sequence gets the same ones alone and in a batch.
        recent_BW: The last tokens of each sequence, oldest first, -1 for missing ones. None skips
            penalties.
        allowed_V: bool [V], the tokens that may be selected, regardless of the parameters. None for
            all.
        processed_BV: The logits after a logits processor, or None.

    Returns:
        (tokens, log-probabilities). Tokens are int32 [B], with -1 if a logits processor left no
        token. Log-probabilities are float32 [B], under the model's own distribution over all V.
    """
    model_BV = logits_BV.astype(jnp.float32)
    logits_BV = model_BV if processed_BV is None else processed_BV
    logits_BV = logits_BV if allowed_V is None else jnp.where(allowed_V, logits_BV, -jnp.inf)
    logits_BV = _add_bias(logits_BV, sampler)
    if recent_BW is not None:
        logits_BV = _penalize(logits_BV, sampler, recent_BW)
    greedy_B = _argmax(logits_BV)

    def draw():
        return jnp.where(sampler.temperature > 0, _draw(logits_BV, sampler, positions_B), greedy_B)

    tokens_B = jax.lax.cond(jnp.any(sampler.temperature > 0), draw, lambda: greedy_B)
    if processed_BV is not None:
        tokens_B = jnp.where(jnp.isfinite(logits_BV.max(axis=-1)), tokens_B, -1)
    chosen_B = jnp.take_along_axis(model_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B, chosen_B - jax.nn.logsumexp(model_BV, axis=-1)


def _argmax(logits_BV):
    """Computes `jnp.argmax` of each row in two steps, which is faster on a CPU."""
    B, V = logits_BV.shape
    padding = ((0, 0), (0, -V % ARGMAX_BLOCK))
    blocks_BNW = jnp.pad(logits_BV, padding, constant_values=-jnp.inf).reshape(B, -1, ARGMAX_BLOCK)
    best_B = jnp.argmax(blocks_BNW.max(axis=-1), axis=-1)
    block_BW = jnp.take_along_axis(blocks_BNW, best_B[:, None, None], axis=1)[:, 0]
    return (best_B * ARGMAX_BLOCK + jnp.argmax(block_BW, axis=-1)).astype(jnp.int32)


#: Logits per block in `_argmax`.
ARGMAX_BLOCK = 512


def _add_bias(logits_BV, sampler):
    # Unused entries get an id beyond the end, which `mode="drop"` ignores.
    ids = jnp.where(sampler.bias_ids < 0, logits_BV.shape[-1], sampler.bias_ids)
    return jax.vmap(lambda row, ids, bias: row.at[ids].add(bias, mode="drop"))(
        logits_BV, ids, sampler.bias
    )


def _penalize(logits_BV, sampler, recent_BW):
    W, column = recent_BW.shape[-1], lambda a: a[:, None]
    wanted = jnp.any(
        (sampler.repetition_penalty != 1)
        | (sampler.presence_penalty != 0)
        | (sampler.frequency_penalty != 0)
    )

    def penalized():
        counts = (recent_BW >= 0) & (jnp.arange(W)[None] >= W - column(sampler.penalty_last_n))

        def add(row, ids, counts):
            return row.at[ids].add(counts.astype(jnp.float32), mode="drop")

        times_BV = jax.vmap(add)(
            jnp.zeros_like(logits_BV), jnp.where(counts, recent_BW, logits_BV.shape[-1]), counts
        )
        penalty = column(sampler.repetition_penalty)
        repeated_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
        lowered_BV = (
            repeated_BV
            - times_BV * column(sampler.frequency_penalty)
            - column(sampler.presence_penalty)
        )
        # Finite logits stay finite, so that banned tokens are always below all others.
        lowered_BV = jnp.clip(lowered_BV, -_HUGE, _HUGE)
        return jnp.where((times_BV > 0) & (logits_BV > -jnp.inf), lowered_BV, logits_BV)

    return jax.lax.cond(wanted, penalized, lambda: logits_BV)


def _draw(logits_BV, sampler, positions_B):
    kept_BV = keep_likely(logits_BV, sampler.top_k, sampler.typical_p, sampler.top_p, sampler.min_p)
    kept_BV = jnp.where(kept_BV, logits_BV, -jnp.inf)
    # Shift the maximum to 0 first, because a logit divided by a tiny temperature is infinite.
    scaled_BV = (kept_BV - kept_BV.max(axis=-1, keepdims=True)) / jnp.maximum(
        sampler.temperature, _TINY
    )[:, None]
    return _categorical(sampler.seed, positions_B, scaled_BV)


# Overrides the user's setting in JAX, which would change the random numbers.
@jax.threefry_partitionable(True)
def _categorical(seed_B2, positions_B, logits_BV):
    """Samples a token of each sequence; seed and position determine it on every device."""
    seeds_B = jax.random.wrap_key_data(seed_B2, impl="threefry2x32")
    keys_B = jax.vmap(jax.random.fold_in)(seeds_B, positions_B)
    draw = functools.partial(jax.random.categorical, mode="low")
    return jax.vmap(draw)(keys_B, logits_BV).astype(jnp.int32)


def keep_likely(logits_BV, top_k_B, typical_p_B, top_p_B, min_p_B):
    """Returns which tokens top-k, typical, top-p and min-p keep, bool [B, V].

    Each filter is applied to the tokens that the previous ones kept.
    """
    order_BV = _sortable(logits_BV)
    V, all_ones = logits_BV.shape[-1], jnp.ones(logits_BV.shape, jnp.float32)
    top_k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    kept_BV = _keep(order_BV, all_ones, top_k_B.astype(jnp.float32), jnp.any(top_k_B < V))
    weights_BV = jnp.where(
        kept_BV, jnp.exp(logits_BV - logits_BV.max(axis=-1, keepdims=True)), jnp.float32(0)
    )

    kept_BV &= jax.lax.cond(
        jnp.any(typical_p_B < 1),
        lambda: _keep_typical(weights_BV, typical_p_B),
        lambda: jnp.ones(logits_BV.shape, bool),
    )
    weights_BV = jnp.where(kept_BV, weights_BV, jnp.float32(0))
    kept_BV &= _keep(order_BV, weights_BV, _share(weights_BV, top_p_B), jnp.any(top_p_B < 1))
    return kept_BV & (weights_BV >= min_p_B[:, None] * weights_BV.max(axis=-1, keepdims=True))


def _keep_typical(weights_BV, typical_p_B):
    total_B = weights_BV.sum(axis=-1, keepdims=True)
    p_BV = weights_BV / total_B
    surprise_BV = -jnp.log(jnp.maximum(p_BV, _TINY))
    distance_BV = jnp.abs(surprise_BV - (p_BV * surprise_BV).sum(axis=-1, keepdims=True))
    return _keep(_sortable(-distance_BV), p_BV, _share(p_BV, typical_p_B), jnp.bool_(True))


def _share(weights_BV, p_B):
    """Returns the weight that tokens must reach for a fraction p of all.

    It is positive, because tokens without weight would reach 0, and infinite if p keeps all tokens.
    """
    return jnp.where(p_B < 1, jnp.maximum(p_B * weights_BV.sum(axis=-1), _TINY), jnp.inf)


def _sortable(values):
    """Maps float32 to uint32 in the same order; both zeros become equal.

    In IEEE 754 this inverts the bits of negative numbers and sets the sign bit of the others.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, jnp.float32(0), values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


@jax.jit  # traced and lowered once for all its calls
def _keep(order_BV, weights_BV, needed_B, wanted):
    """Returns where order >= t, for the highest t whose tokens have a total weight of `needed_B`.

    Returns all True unless `wanted`.
    """
    # A GPU sums for 15 candidates in the time of one, and each pass costs two kernel launches. A
    # CPU sums for one candidate at a time.
    find = functools.partial(
        jax.lax.platform_dependent,
        order_BV,
        weights_BV,
        needed_B,
        cpu=functools.partial(_threshold, bits=1),
        default=functools.partial(_threshold, bits=4),
    )
    threshold_B = jax.lax.cond(wanted, find, lambda: jnp.zeros(order_BV.shape[:1], jnp.uint32))
    return order_BV >= threshold_B[:, None]


def _threshold(order_BV, weights_BV, needed_B, *, bits):
    """Finds the threshold, uint32 [B], in steps of `bits` bits from the highest on."""
    digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)[None]

    def raise_threshold(i, threshold_B):
        shift = (jnp.int32(32 - bits) - bits * i).astype(jnp.uint32)
        candidates = threshold_B[:, None] | (digits << shift)
        chosen = order_BV[:, None] >= candidates[:, :, None]
        enough = (
            jnp.where(chosen, weights_BV[:, None], jnp.float32(0)).sum(axis=-1) >= needed_B[:, None]
        )
        return jnp.maximum(threshold_B, jnp.where(enough, candidates, jnp.uint32(0)).max(axis=-1))

    lowest_B = jnp.zeros(order_BV.shape[:1], jnp.uint32)
    return jax.lax.fori_loop(0, 32 // bits, raise_threshold, lowest_B, unroll=bits > 1)
