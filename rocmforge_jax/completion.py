"""What is generated for one prompt: the answer while it grows, and the completion it becomes."""

import dataclasses
from collections.abc import Iterator

from rocmforge_jax.generate import Generated
from rocmforge_jax.text import StopStrings, Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    text: without stop strings. ids: the generated tokens, without the stop token. logprobs: one for
    each id, natural logarithm, under the model's own distribution. finish_reason: "stop" (a stop
    token or string), "length" (max_tokens) or "context" (the context is full). prompt_tokens:
    tokens of the prompt.
    """

    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]
    prompt_tokens: int

    def __str__(self):
        return self.text


class Answer:
    """One prompt's answer while it is being generated."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop):
        self.prompt = prompt
        self._text = tokenizer.stream(skip_special=True, after=prompt)
        self._stops = StopStrings(stop)
        self._ids, self._logprobs, self._pieces = [], [], []
        self.finish_reason = None

    def take(self, generated: Generated) -> str:
        """Take a dispatch's tokens in, one by one up to a stop string.

        -> the text that is certain now.
        """
        if self.finish_reason:
            return ""
        pieces = []
        for id, logprob in zip(generated.ids, generated.logprobs):
            self._ids.append(id)
            self._logprobs.append(logprob)
            pieces.append(self._stops.push(self._text.push([id])))
            if self._stops.hit is not None:
                self.finish_reason = "stop"
                break
        if not self.finish_reason and generated.finish_reason:
            self.finish_reason = generated.finish_reason
            pieces.append(self._stops.push(self._text.flush()))
            pieces.append(self._stops.flush())
        self._pieces += pieces
        return "".join(pieces)

    def stream(self, steps: Iterator[Generated]) -> Iterator[str]:
        """Yields the text that becomes certain, dispatch by dispatch."""
        for generated in steps:
            if piece := self.take(generated):
                yield piece
            if self.finish_reason:
                return

    def completion(self) -> Completion:
        """Returns the whole answer, when it has ended."""
        assert self.finish_reason is not None
        text = "".join(self._pieces)
        return Completion(text, self._ids, self.finish_reason, self._logprobs, len(self.prompt))
