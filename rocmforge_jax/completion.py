"""What is generated for one prompt: the answer while it grows, and the completion it becomes."""

import dataclasses
import math
from collections.abc import Iterator

from rocmforge_jax.generate import Generated, Generation
from rocmforge_jax.gguf.errors import quoted
from rocmforge_jax.html import element, escape, joined, shade, spans
from rocmforge_jax.text import StopStrings, Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    text: without stop strings. ids: the generated tokens, without the stop token. logprobs: one for
    each id, natural logarithm, under the model's own distribution. finish_reason: "stop" (a stop
    token or string), "length" (max_tokens) or "context" (the context is full). prompt_tokens:
    tokens of the prompt. top_logprobs: for each id the ids and log-probabilities of the likeliest
    tokens there, in descending order; None unless they were asked for. pieces: the text that each
    id completes, which together are `text`.
    """

    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]
    prompt_tokens: int
    top_logprobs: list[dict[int, float]] | None = None
    pieces: list[str] | None = None

    def __str__(self):
        return self.text

    def __repr__(self):
        ended = f"{len(self.ids)} tokens, {self.finish_reason}, mean_logprob"
        return f"Completion({quoted(self.text)}, {ended}={self.mean_logprob:.3f})"

    def _repr_html_(self) -> str:
        end = f"{len(self.ids)} tokens, ended by {self.finish_reason}, mean log-probability"
        return joined(self._shaded(), element("small", f"{end} {self.mean_logprob:.3f}"))

    def _shaded(self) -> str:
        """Returns the text as HTML, the darker a token the likelier it was."""
        if self.pieces is None or not len(self.pieces) == len(self.logprobs) == len(self.ids):
            return element("div", escape(self.text, most=10_000), style="white-space: pre-wrap")
        shares = [math.exp(min(logprob, 0.0)) for logprob in self.logprobs]
        titles = (f"token {id}, {share:.1%}" for id, share in zip(self.ids, shares))
        return spans(self.pieces, map(shade, shares), titles)

    @property
    def mean_logprob(self) -> float:
        """The mean log-probability of a token, -inf without tokens."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else float("-inf")


class Piece(str):
    """A piece of a text that is streamed: a `str` that knows its tokens.

    A token whose text is not certain yet is in a later piece. Only the last piece of an answer may
    be an empty text.

    Attributes:
        ids: The tokens that are new since the piece before, without the stop token.
        logprobs: Their log-probabilities under the model's own distribution.
        top_logprobs: As in `Completion`; None unless they were asked for.
        finish_reason: As in `Completion`; None but in the last piece of an answer.
        index: The number of the answer, where several are streamed.
    """

    ids: list[int]
    logprobs: list[float]
    top_logprobs: list[dict[int, float]] | None
    finish_reason: str | None
    index: int


class Answer:
    """One prompt's answer while it is being generated.

    with_top: whether likeliest tokens were asked for.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: list[int], stop, *, with_top: bool = False, index=0
    ):
        self.prompt, self._index = prompt, index
        self._text = tokenizer.stream(skip_special=True, after=prompt)
        self._stops = StopStrings(stop)
        self._ids, self._logprobs, self._pieces = [], [], []
        self._top: list[dict[int, float]] | None = [] if with_top else None
        self._streamed = 0  # tokens in the pieces before
        self.finish_reason: str | None = None

    def take(self, generated: Generated) -> str:
        """Take a dispatch's tokens in, one by one up to a stop string.

        -> the text that is certain now.
        """
        if self.finish_reason:
            return ""
        pieces, rest = [], ""
        for place, id in enumerate(generated.ids):
            self._ids.append(id)
            self._logprobs.append(generated.logprobs[place])
            if self._top is not None:
                self._top.append(generated.top_logprobs[place])
            pieces.append(self._stops.push(self._text.push([id])))
            if self._stops.hit is not None:
                self.finish_reason = "stop"
                break
        if not self.finish_reason and generated.finish_reason:
            self.finish_reason = generated.finish_reason
            rest = self._stops.push(self._text.flush()) + self._stops.flush()
        self._pieces += pieces
        if rest:  # what the last token left open
            self._pieces[-1:] = ["".join([*self._pieces[-1:], rest])]
        return "".join(pieces) + rest

    def take_piece(self, generated: Generated) -> Piece | None:
        """Takes a dispatch in; returns the piece it completes, None where there is none."""
        if self.finish_reason:
            return None
        text = self.take(generated)
        if not text and not self.finish_reason:
            return None
        new, piece = slice(self._streamed, None), Piece(text)
        piece.ids, piece.logprobs = self._ids[new], self._logprobs[new]
        piece.top_logprobs = None if self._top is None else self._top[new]
        piece.finish_reason, piece.index = self.finish_reason, self._index
        self._streamed = len(self._ids)
        return piece

    def completion(self) -> Completion:
        """Returns the whole answer, when it has ended."""
        assert self.finish_reason is not None
        text, counted, reason = "".join(self._pieces), len(self.prompt), self.finish_reason
        return Completion(text, self._ids, reason, self._logprobs, counted, self._top, self._pieces)


def streamed(answers: list[Answer], generation: Generation) -> Iterator[Piece]:
    """Yields the pieces of answers, dispatch by dispatch, until all of them have ended."""
    for added in generation.added:
        for number, generated in added.items():
            answer = answers[number]
            if (piece := answer.take_piece(generated)) is not None:
                yield piece
            if answer.finish_reason:  # perhaps at a stop string
                generation.stop(number)
