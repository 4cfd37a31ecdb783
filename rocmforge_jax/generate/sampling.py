"""Choosing the next token, on the device. Every parameter is an array, so another temperature compiles nothing.

The order is llama.cpp's: top-k, then top-p, then min-p, then the temperature. Nothing is sorted: a threshold that keeps k
tokens, or a share p of the probability, is found bit by bit in 32 passes, which is exact and quick for any k and p. Tokens
that tie with the last one kept are kept as well.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How one sequence is sampled.

    temperature: 0 takes the likeliest token (greedy); 1 samples the model's own distribution. top_k: keep the k likeliest
    tokens, 0 keeps all. top_p: keep the fewest tokens whose probabilities sum to at least this, 1 keeps all. min_p: drop tokens
    less likely than this share of the likeliest, 0 drops none. seed: 0 to 2**32 - 1; equal seeds give equal text.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int = 0

    def __post_init__(self):
        _check_range("temperature", self.temperature, 0, math.inf)
        _check_range("top_p", self.top_p, 0, 1, "above 0", exclusive=True)
        _check_range("min_p", self.min_p, 0, 1)
        for name, high in (("top_k", 2**31 - 1), ("seed", 2**32 - 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
                raise ValueError(f"{name} must be an integer from 0 to {high}, got {value!r}")


def _check_range(name, value, low, high, words="", exclusive=False):
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or exclusive and value == low:
        top = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} must be a finite number {words or f'of at least {low}'}{top}, got {value!r}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """The parameters of B sequences on the device: float32, int32 or uint32 [B]. Ranges as in `SamplingParams`."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array

    @classmethod
    def of(cls, params: list[SamplingParams]) -> "Sampler":
        dtypes = dict(temperature=np.float32, top_k=np.int32, top_p=np.float32, min_p=np.float32, seed=np.uint32)
        return cls(**{name: jnp.asarray(np.array([getattr(p, name) for p in params], dtype)) for name, dtype in dtypes.items()})


def sample(logits_BV, sampler: Sampler, positions_B):
    """-> (tokens int32 [B], their log-probabilities float32 [B] under the model's own distribution).

    positions_B: how many tokens each sequence has; with the seed it determines the random numbers, so a sequence gets the same
    ones alone and in a batch. Greedy ties go to the lowest id.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    draw = lambda: jnp.where(sampler.temperature > 0, _draw(logits_BV, sampler, positions_B), greedy_B)
    tokens_B = jax.lax.cond(jnp.any(sampler.temperature > 0), draw, lambda: greedy_B)
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return tokens_B, chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def _draw(logits_BV, sampler, positions_B):
    kept_BV = keep_likeliest(logits_BV, sampler.top_k, sampler.top_p, sampler.min_p)
    temperature_B = jnp.where(sampler.temperature > 0, sampler.temperature, jnp.float32(1))
    scaled_BV = jnp.where(kept_BV, logits_BV / temperature_B[:, None], -jnp.inf)
    keys_B = jax.vmap(lambda seed, position: jax.random.fold_in(jax.random.key(seed), position))(sampler.seed, positions_B)
    return jax.vmap(jax.random.categorical)(keys_B, scaled_BV).astype(jnp.int32)


def keep_likeliest(logits_BV, top_k_B, top_p_B, min_p_B):
    """bool [B, V]: the tokens that top-k, then top-p, then min-p leave."""
    order_BV = _sortable(logits_BV)
    V = logits_BV.shape[-1]
    top_k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, V), V)
    count = lambda above_BV: above_BV.sum(axis=-1, dtype=jnp.int32) >= top_k_B
    kept_BV = _keep(order_BV, count, jnp.any(top_k_B < V))

    weights_BV = jnp.where(kept_BV, jnp.exp(logits_BV - logits_BV.max(axis=-1, keepdims=True)), jnp.float32(0))
    needed_B = top_p_B * weights_BV.sum(axis=-1)
    mass = lambda above_BV: jnp.where(above_BV, weights_BV, jnp.float32(0)).sum(axis=-1) >= needed_B
    kept_BV &= _keep(order_BV, mass, jnp.any(top_p_B < 1))
    return kept_BV & (weights_BV >= min_p_B[:, None])


def _sortable(values):
    """float32 -> uint32 in the same order (IEEE 754: negative numbers have their bits inverted)."""
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _keep(order_BV, enough, wanted):
    """Where order >= t, for the highest t whose tokens are enough(bool [B, V]) -> bool [B]; everything where not `wanted`."""

    def raise_threshold(i, threshold_B):
        candidate_B = threshold_B | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(enough(order_BV >= candidate_B[:, None]), candidate_B, threshold_B)

    search = lambda: jax.lax.fori_loop(0, 32, raise_threshold, jnp.zeros(order_BV.shape[:1], jnp.uint32))
    threshold_B = jax.lax.cond(wanted, search, lambda: jnp.zeros(order_BV.shape[:1], jnp.uint32))
    return order_BV >= threshold_B[:, None]
