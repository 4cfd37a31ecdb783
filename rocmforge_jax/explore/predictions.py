"""What a model would say next: after each token of a prompt, and after each of its layers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rocmforge_jax.arguments import integer
from rocmforge_jax.explore.prompts import Text, read_prompt
from rocmforge_jax.explore.watch import require_one_stream, watch
from rocmforge_jax.html import element, shade, table

#: Alternatives that a table shows.
SHOWN = 5


@dataclasses.dataclass(frozen=True, repr=False)
class NextTokens:
    """The likeliest next tokens after each token of a prompt, in descending order.

    Attributes:
        prompt_ids: int32 [T].
        prompt_pieces: Their texts.
        ids: int32 [T, top], the likeliest tokens to follow.
        pieces: Their texts, likewise.
        probabilities: float32 [T, top].
        entropy: float32 [T], of the whole distribution, in nats.
    """

    prompt_ids: np.ndarray
    prompt_pieces: list[str]
    ids: np.ndarray
    pieces: list[list[str]]
    probabilities: np.ndarray
    entropy: np.ndarray

    def _line(self, place: int) -> str:
        pairs = zip(self.pieces[place][:SHOWN], self.probabilities[place])
        return "  ".join(f"{piece!r} {share:.1%}" for piece, share in pairs)

    def __repr__(self):
        return f"<NextTokens after {len(self.prompt_ids)} tokens: {self._line(-1)}>"

    def _repr_html_(self) -> str:
        rows = (
            (place, repr(piece), self._line(place), f"{self.entropy[place]:.2f}")
            for place, piece in enumerate(self.prompt_pieces)
        )
        return table(("place", "token", "what may follow", "entropy"), rows, most=200)


@dataclasses.dataclass(frozen=True, repr=False)
class LogitLens:
    """What the head reads out of the residual stream after each layer, likeliest first.

    Attributes:
        prompt_ids: int32 [T].
        prompt_pieces: Their texts.
        ids: int32 [layers, T, top].
        pieces: Their texts, likewise.
        probabilities: float32 [layers, T, top]. The last layer's are the model's own.
    """

    prompt_ids: np.ndarray
    prompt_pieces: list[str]
    ids: np.ndarray
    pieces: list[list[list[str]]]
    probabilities: np.ndarray

    def __repr__(self):
        layers, T, _ = self.ids.shape
        last = " ".join(repr(layer[-1][0]) for layer in self.pieces)
        return f"<LogitLens of {layers} layers and {T} tokens: {last} after the last token>"

    def _repr_html_(self) -> str:
        header = ["layer", *map(repr, self.prompt_pieces)]
        rows = [
            [layer, *(_shaded(one[0], share[0]) for one, share in zip(*of_layer))]
            for layer, of_layer in enumerate(zip(self.pieces, self.probabilities))
        ]
        return table(header, rows, most=200)


def _shaded(piece: str, share: float):
    style = f"background: {shade(float(share))}; color: #111"
    return element("span", repr(piece), style=style, title=f"{share:.1%}")


def next_tokens(lm: Any, prompt: Text, top: int = 10) -> NextTokens:
    """Computes which tokens may follow each token of a prompt.

    The row of the last token is about the token after the prompt.

    Args:
        lm: A LanguageModel; or a Decoder, for a prompt of ids.
        prompt: A text, or the ids of its tokens.
        top: Alternatives for each place, at most the vocabulary.

    Raises:
        TypeError: `lm` or the prompt is of another type.
        ValueError: The prompt has no token, an id is outside the vocabulary, `top` is out of its
            range, or the model is an encoder without a head.
    """
    read = read_prompt(lm, prompt)
    top = integer("top", top, 1, read.model.config.vocabulary)
    ids, probabilities, entropy = watch(read, _Next(top))
    T = len(read.ids)
    ids = ids[:T]
    return NextTokens(
        read.ids,
        read.pieces(read.ids),
        ids,
        read.pieces(ids),
        probabilities[:T],
        entropy[:T],
    )


def logit_lens(lm: Any, prompt: Text, top: int = 1) -> LogitLens:
    """Reads the residual stream after every layer with the head of the model.

    Args:
        lm: A LanguageModel; or a Decoder, for a prompt of ids.
        prompt: A text, or the ids of its tokens.
        top: Tokens for each layer and place, at most the vocabulary.

    Raises:
        TypeError: `lm` or the prompt is of another type.
        ValueError: As `next_tokens`, or the layers pass on several residual streams.
    """
    read = read_prompt(lm, prompt)
    require_one_stream(read.model, "logit_lens")
    top = integer("top", top, 1, read.model.config.vocabulary)
    ids, probabilities = watch(read, _Lens(top))
    T = len(read.ids)
    ids = ids[:, :T]
    return LogitLens(read.ids, read.pieces(read.ids), ids, read.pieces(ids), probabilities[:, :T])


@dataclasses.dataclass(frozen=True)
class _Next:
    top: int

    def __call__(self, model, steps, hidden_BTD):
        log_TV = jax.nn.log_softmax(model.logits(hidden_BTD)[0])
        probabilities, ids = jax.lax.top_k(jnp.exp(log_TV), self.top)
        # A token that cannot follow has log-probability -inf and adds nothing.
        entropy = -jnp.sum(jnp.where(log_TV > -jnp.inf, jnp.exp(log_TV) * log_TV, 0), axis=-1)
        return ids, probabilities, entropy


@dataclasses.dataclass(frozen=True)
class _Lens:
    top: int

    def __call__(self, model, steps, hidden_BTD):
        streams_LTD = jnp.stack([step.after[0] for step in steps])

        def of_layer(x_TD):
            return jax.lax.top_k(jax.nn.softmax(model.head(x_TD[None])[0]), self.top)

        # One layer after another: the logits of all of them would fill the memory.
        probabilities, ids = jax.lax.map(of_layer, streams_LTD)
        return ids, probabilities
