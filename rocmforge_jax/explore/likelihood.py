"""How surprised a model is by each token of a text."""

import dataclasses
import math
from typing import Any

import numpy as np

from rocmforge_jax.explore.prompts import Text, read_prompt
from rocmforge_jax.html import element, joined, shade, spans

#: The loss, in nats, from which on a token has the darkest shade.
DARKEST = 8.0


@dataclasses.dataclass(frozen=True, repr=False)
class TokenLikelihoods:
    """The negative log-likelihood of each token of a text after all before it.

    Attributes:
        ids: int32 [T]. The first token is not predicted.
        pieces: Their texts.
        losses: float32 [T - 1], of the tokens from the second on, in nats.
    """

    ids: np.ndarray
    pieces: list[str]
    losses: np.ndarray

    @property
    def perplexity(self) -> float:
        """The perplexity, exp of the mean loss."""
        return math.exp(self.losses.mean(dtype=np.float64))

    def __repr__(self):
        return f"<TokenLikelihoods of {len(self.losses)} tokens: perplexity {self.perplexity:.4g}>"

    def _repr_html_(self) -> str:
        # The paler, the likelier.
        colours = [shade(0), *(shade(loss / DARKEST, hue=20) for loss in self.losses.tolist())]
        titles = ["not predicted", *(f"{math.exp(-loss):.2%}" for loss in self.losses.tolist())]
        total = f"perplexity {self.perplexity:.4g} over {len(self.losses)} tokens"
        return joined(spans(self.pieces, colours, titles), element("small", total))


def perplexity_by_position(lm: Any, text: Text) -> TokenLikelihoods:
    """Computes the negative log-likelihood of each token of a text, in one window.

    Args:
        lm: A LanguageModel.
        text: A text, or the ids of its tokens, at least two. A text gets the tokens that begin one.

    Raises:
        TypeError: `lm` or the text is of another type.
        ValueError: The text has fewer than two tokens or more than the context, an id is outside
            the vocabulary, or the model generates nothing.
    """
    if not hasattr(lm, "engine"):
        raise TypeError(f"perplexity_by_position takes a LanguageModel, got {type(lm).__name__}")
    read, longest = read_prompt(lm, text, least=2), lm.engine.context_length
    if len(read.ids) > longest:
        raise ValueError(
            f"the text has {len(read.ids)} tokens, the context is {longest}: shorten it, or take"
            " lm.perplexity, which cuts it into windows"
        )
    losses = -np.asarray(lm.engine.score(read.ids[None]))[0]
    return TokenLikelihoods(read.ids, read.pieces(read.ids), losses)
