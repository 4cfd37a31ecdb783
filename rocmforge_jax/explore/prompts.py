"""What every exploration begins with: a model, the ids of a prompt, and their texts."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rocmforge_jax.arguments import integer, shown
from rocmforge_jax.models import Decoder
from rocmforge_jax.text import Tokenizer

#: A text, or the ids of its tokens.
Text = str | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt and the model that reads it.

    Attributes:
        model: The decoder.
        ids: The tokens, int32 [T].
        tokenizer: Writes ids as text, or None.
    """

    model: Decoder
    ids: np.ndarray
    tokenizer: Tokenizer | None

    def pieces(self, ids: Any) -> Any:
        """Returns the texts of ids, in lists that are nested like the array."""
        return pieces(self.tokenizer, np.asarray(ids).tolist())


def pieces(tokenizer: Tokenizer | None, ids: Any) -> Any:
    """Returns the texts of nested lists of ids.

    A token that is no whole character is written as its bytes, and as its number without a
    tokenizer or beyond the tokens that it has.
    """
    if isinstance(ids, list | tuple):
        return [pieces(tokenizer, one) for one in ids]
    if tokenizer is None or ids >= tokenizer.vocab_size:
        return f"#{ids}"
    return tokenizer.piece(ids).decode("utf-8", "backslashreplace")


def read_prompt(lm: Any, prompt: Text, least: int = 1) -> Prompt:
    """Returns a prompt as the model reads it: a text gets the tokens that begin one.

    Args:
        lm: A LanguageModel; or a Decoder, for prompts that are ids.
        prompt: A text, or the ids of its tokens.
        least: The fewest tokens that will do.

    Raises:
        TypeError: `lm` is neither, or the prompt is neither a text nor ids.
        ValueError: The prompt is too short, or an id is outside the vocabulary.
    """
    model = lm if isinstance(lm, Decoder) else getattr(lm, "model", None)
    if not isinstance(model, Decoder):
        raise TypeError(f"explore takes a LanguageModel or a Decoder, got {shown(lm)}")
    if isinstance(prompt, str):
        if isinstance(lm, Decoder):
            raise TypeError(
                "a Decoder has no tokenizer: give the ids of the prompt's tokens, or a"
                " LanguageModel"
            )
        prompt = lm.prompt_ids(prompt)
    ids = checked_ids(prompt, model.config.vocabulary)
    if len(ids) < least:
        raise ValueError(f"the prompt has {len(ids)} tokens, this takes at least {least}")
    longest = model.config.context_length if lm is model else lm.engine.context_length
    if len(ids) > longest:
        raise ValueError(f"the prompt has {len(ids)} tokens, the context {longest}: shorten it")
    tokenizer = None if isinstance(lm, Decoder) else lm.tokenizer
    return Prompt(model, np.array(ids, np.int32), tokenizer)


def checked_ids(ids: Any, vocabulary: int) -> list[int]:
    """Returns the ids of tokens as a list.

    Raises:
        TypeError: It is no sequence.
        ValueError: An id is outside the vocabulary.
    """
    if isinstance(ids, bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"a prompt is a text or a list of token ids, got {shown(ids)}")
    ids = list(ids)
    if ids and (isinstance(ids[0], str | list | tuple) or getattr(ids[0], "ndim", 0)):
        kind = "texts" if isinstance(ids[0], str) else "rows of ids"
        raise TypeError(
            f"explore takes one prompt, a text or the ids [T] of its tokens, got {len(ids)} {kind}"
        )
    return [integer("a token id", id, 0, vocabulary - 1) for id in ids]
