"""The frequencies of a rotary embedding in float64: the truth for `nn.rope`."""

import math

import numpy as np


def frequencies(config):
    """Radians per position, float64 [width / 2], pair by pair as ggml's rope_yarn has them."""
    found = []
    for pair in range(config.width // 2):
        extrapolated = config.base ** (-2 * pair / config.width)
        if config.factors is not None:
            extrapolated /= config.factors[pair]
        interpolated = extrapolated / config.scale
        mix = 0.0
        if config.yarn is not None:
            low = math.floor(turning(config, config.yarn.beta_fast))
            high = math.ceil(turning(config, config.yarn.beta_slow))
            low, high = max(0, low), min(config.width - 1, high)
            mix = 1 - min(1, max(0, (pair - low) / max(0.001, high - low)))
        found.append(interpolated * (1 - mix) + extrapolated * mix)
    return np.array(found)


def turning(config, turns):
    """The pair, not a whole number, that makes so many turns in the original context."""
    context = config.yarn.original_context
    return config.width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.base))
