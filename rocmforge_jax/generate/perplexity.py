"""Computes the perplexity of a text like llama.cpp."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.generate.engine import Engine
from rocmforge_jax.html import element
from rocmforge_jax.progress import progress_bar


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A perplexity.

    Attributes:
        value: exp of the mean negative log-likelihood.
        error: Its standard error.
        tokens: The number of predicted tokens.
        windows: The number of windows that the text was cut into.
        window: The number of tokens of a window.
    """

    value: float
    error: float
    tokens: int
    windows: int
    window: int

    def __str__(self):
        return f"{self.value:.4f}{self._spread()}"

    def _repr_html_(self) -> str:
        return element("div", "perplexity ", element("b", f"{self.value:.4f}"), self._spread())

    def _spread(self) -> str:
        windows = f"{self.windows:,} window{'s' * (self.windows != 1)} of {self.window:,}"
        return f" +/- {self.error:.4f} over {self.tokens:,} tokens in {windows}"


def perplexity(
    engine: Engine,
    ids: Sequence[int],
    *,
    window: int = 512,
    bos_id: int | None = None,
    progress: bool | None = None,
) -> Perplexity:
    """Computes the perplexity of a text in windows, like llama.cpp's tools/perplexity.

    Every window starts with an empty context. Only its second half is predicted, so that every
    prediction has at least half a window before it. A rest shorter than a window is ignored.

    Args:
        engine: The engine of the model.
        ids: The token ids of the text.
        window: The number of tokens of a window, from 4 to the engine's context length.
        bos_id: Replaces the first token of each window.
        progress: Whether to show a progress bar. Default: if stderr is a terminal.

    Raises:
        ValueError: The text is shorter than one window, or `window` is out of range.
    """
    engine.check_generates()
    window = integer("window", window, 4, engine.context_length)
    count = len(ids) // window
    if not count:
        shorter = f"give window={len(ids)} or less, or " if len(ids) >= 4 else "give "
        raise ValueError(
            f"the text has {len(ids)} tokens, one window needs {window}: {shorter}a longer text"
        )
    windows = np.array(ids[: count * window], np.int32).reshape(count, window)
    if bos_id is not None:
        windows[:, 0] = bos_id
    bar = progress_bar(windows, progress=progress, unit="window", desc="perplexity")
    losses = -np.concatenate(
        [np.asarray(engine.score(row[None], window // 2), np.float64)[0] for row in bar]
    )
    mean, variance = losses.mean(), losses.var()
    error = math.sqrt(variance / max(len(losses) - 1, 1)) * math.exp(mean)
    return Perplexity(math.exp(mean), error, len(losses), count, window)
