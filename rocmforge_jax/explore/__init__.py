"""Looks inside models and files: predictions, attention, activations, errors of quantisation.

Each function returns arrays in a small dataclass, which a notebook shows as a table. Its `plot_`
companion draws them on matplotlib Axes, which the extra `notebook` installs.
"""

from rocmforge_jax.explore.activations import ActivationStatistics, activation_statistics
from rocmforge_jax.explore.attention import AttentionMap, attention_map
from rocmforge_jax.explore.likelihood import TokenLikelihoods, perplexity_by_position
from rocmforge_jax.explore.plots import (
    plot_activation_statistics,
    plot_attention_map,
    plot_logit_lens,
    plot_next_tokens,
    plot_perplexity_by_position,
    plot_quantization_error,
)
from rocmforge_jax.explore.predictions import LogitLens, NextTokens, logit_lens, next_tokens
from rocmforge_jax.explore.tokens import TokenizedText, tokens
from rocmforge_jax.explore.weights import QuantizationErrors, quantization_error

__all__ = [
    "ActivationStatistics",
    "AttentionMap",
    "LogitLens",
    "NextTokens",
    "QuantizationErrors",
    "TokenLikelihoods",
    "TokenizedText",
    "activation_statistics",
    "attention_map",
    "logit_lens",
    "next_tokens",
    "perplexity_by_position",
    "plot_activation_statistics",
    "plot_attention_map",
    "plot_logit_lens",
    "plot_next_tokens",
    "plot_perplexity_by_position",
    "plot_quantization_error",
    "quantization_error",
    "tokens",
]
