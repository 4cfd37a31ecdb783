"""How large the numbers between the layers are."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import number
from rocmforge_jax.explore.prompts import Text, read_prompt
from rocmforge_jax.explore.watch import watch
from rocmforge_jax.html import table


@dataclasses.dataclass(frozen=True, repr=False)
class ActivationStatistics:
    """Statistics of the residual stream after each layer, over the tokens of a prompt.

    Attributes:
        rms: float32 [layers], the root mean square.
        largest: float32 [layers], the largest magnitude.
        channel: int32 [layers], the channel that has it.
        outliers: float32 [layers], the share of numbers beyond `threshold` times the root mean
            square of their layer.
        threshold: That factor.
    """

    rms: np.ndarray
    largest: np.ndarray
    channel: np.ndarray
    outliers: np.ndarray
    threshold: float

    def __repr__(self):
        ends = f"rms {self.rms[0]:.3g} to {self.rms[-1]:.3g}, largest {self.largest.max():.3g}"
        return f"<ActivationStatistics of {len(self.rms)} layers: {ends}>"

    def _repr_html_(self) -> str:
        rows = (
            (layer, f"{rms:.4g}", f"{largest:.4g}", channel, f"{share:.3%}")
            for layer, (rms, largest, channel, share) in enumerate(
                zip(self.rms, self.largest, self.channel, self.outliers)
            )
        )
        beyond = f"beyond {self.threshold:g} rms"
        return table(("layer", "rms", "largest", "in channel", beyond), rows, most=200)


def activation_statistics(lm: Any, prompt: Text, threshold: float = 6.0) -> ActivationStatistics:
    """Measures the residual stream after each layer; with several streams, all of them.

    Args:
        lm: A LanguageModel; or a Decoder, for a prompt of ids.
        prompt: A text, or the ids of its tokens.
        threshold: From how many times the root mean square on a number is an outlier.

    Raises:
        TypeError: `lm` or the prompt is of another type.
        ValueError: The prompt has no token, an id is outside the vocabulary, or the threshold is
            not positive.
    """
    read = read_prompt(lm, prompt)
    threshold = number("threshold", threshold, 0, exclusive=True)
    rms, largest, channel, outliers = watch(read, _Statistics(threshold))
    return ActivationStatistics(rms, largest, channel, outliers, threshold)


@dataclasses.dataclass(frozen=True)
class _Statistics:
    threshold: float

    def __call__(self, model, steps, hidden_BTD):
        return tuple(map(jnp.stack, zip(*map(self._of_layer, steps))))

    def _of_layer(self, step):
        x = step.after.astype(jnp.float32)  # [..., T, D]
        T, D = x.shape[-2:]
        real_T1 = (jnp.arange(T) < step.tokens.lengths_B[0])[:, None]
        sizes = jnp.where(real_T1, jnp.abs(x.reshape(-1, T, D)), 0)
        count = step.tokens.lengths_B[0].astype(jnp.float32) * (sizes.size // T)
        rms = jnp.sqrt(jnp.sum(sizes * sizes) / count)
        largest_D = sizes.max(axis=(0, 1))
        outliers = jnp.sum((sizes > self.threshold * rms).astype(jnp.float32)) / count
        return rms, largest_D.max(), largest_D.argmax().astype(jnp.int32), outliers
