"""Context extensions of rotary embeddings as settings of transformers."""

import math
from typing import Any

import numpy as np

from rocmforge_jax.nn import RopeConfig

#: Of Llama 3.1 and later: the frequencies that are slowed down, in turns of the original context.
_LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def rope_settings(rope: RopeConfig | None) -> dict[str, Any]:
    """Returns the settings of a rotary embedding.

    Raises:
        ValueError: Its factors are not Llama 3's, or it has YaRN.
    """
    if rope is None:
        return {}
    made: dict[str, Any] = {"rope_theta": rope.base}
    if rope.factors is not None:
        return made | {"rope_scaling": _llama3(rope)}
    if rope.scale != 1:
        return made | {"rope_scaling": {"rope_type": "linear", "factor": rope.scale}}
    return made


def _llama3(rope: RopeConfig) -> dict[str, Any]:
    factors = np.asarray(rope.factors)
    scaling: dict[str, Any] = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
    if not np.allclose(factors, llama3_factors(rope.width, rope.base, scaling), rtol=1e-4):
        raise ValueError(
            "the factors of the rotary frequencies (rope_freqs.weight) are not those of Llama 3.1:"
            f" up to {factors.max():g} in {len(factors)} pairs, which config.json cannot say"
        )
    return scaling


def llama3_factors(width: int, base: float, scaling: dict[str, Any]) -> np.ndarray:
    """Computes the divisors of the frequencies, float64 [width / 2].

    Frequencies of few turns in the original context are divided by the whole factor, those of many
    by nothing, and those between by what lies between in turns.
    """
    turns = (
        scaling["original_max_position_embeddings"]
        * base ** (-np.arange(0, width, 2) / width)
        / (2 * math.pi)
    )
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / scaling["factor"] + kept)
