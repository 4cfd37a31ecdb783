"""Unigram: a codec of `tokenizer_models`. The `tokenizers` library looks for the best tokens."""

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.charsmap import Charsmap
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import SPACE, Vocabulary

_TEXTUAL = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
_UNKNOWN = 0  # the library's id of unknown characters
_PENALTY = np.float32(10)  # of an unknown character, besides the least score


class UnigramCodec:
    """Unigram, which `tokenizer.ggml.model` calls t5.

    Of all ways to cut a text into tokens the one with the greatest sum of scores is taken. Each
    run of characters without tokens is one unknown token.

    Args:
        vocabulary: The tokens with their scores.
        charsmap: What to replace before.
        space_prefix: Whether a space is put before the first word of a text.
        merge_spaces: Whether there is exactly one space before each word, whatever the text has.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        charsmap: Charsmap | None,
        *,
        space_prefix: bool,
        merge_spaces: bool,
    ):
        self.space_prefix, self._merge_spaces = space_prefix, merge_spaces
        self._charsmap = charsmap
        scores, least = _scores(vocabulary)
        # The library has ids of its own; an unknown character is a token without a text.
        self._ids = [vocabulary.ids.get("unk"), *map(vocabulary.index.__getitem__, scores)]
        self._tokenizer = Tokenizer(Unigram([("", least), *scores.items()], unk_id=_UNKNOWN))

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of what was left out."""
        normalized = [self._normalized(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(normalized, add_special_tokens=False)
        found = [[self._ids[id] for id in encoding.ids] for encoding in encoded]
        if self._ids[_UNKNOWN] is not None:
            return found, []
        known = [[id for id in ids if id is not None] for ids in found]
        return known, [repr(text) for text in sorted(self._unknown_parts(normalized))]

    def _unknown_parts(self, texts: list[str]) -> set[str]:
        with_offsets = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return {
            text[start:end]
            for text, each in zip(texts, with_offsets)
            for id, (start, end) in zip(each.ids, each.offsets)
            if id == _UNKNOWN
        }

    def _normalized(self, text: str) -> str:
        if self._charsmap is not None:
            text = self._charsmap.replace(text)
        if self._merge_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        if self.space_prefix and (words := text.lstrip(" ")):
            text = text[: len(text) - len(words)] + " " + words
        return text.replace(" ", SPACE)

    def decode(self, token: str) -> bytes:
        """The bytes of an ordinary token."""
        return token.replace(SPACE, " ").encode()


def _scores(vocabulary: Vocabulary) -> tuple[dict[str, float], float]:
    """Returns the scores of the tokens that a text can hold, and the least of them.

    The library counts an unknown character as 10 less than the least score of all tokens,
    llama.cpp as 10 less than that of normal ones. So other tokens that have less are left out:
    unused ones with -10000, into which no text would be cut.
    """
    types = vocabulary.types.tolist()
    given = vocabulary.scores
    if given is None:
        meta.warn(
            "the file has no tokenizer.ggml.scores: all ways to cut a text are equal, and the first"
            " one found is taken"
        )
        given = np.zeros(len(types))
    normal = given[vocabulary.types == TokenType.NORMAL].astype(np.float32)
    # llama.cpp subtracts in float32, the library in float64
    least = float((normal.min() if normal.size else np.float32(0)) - _PENALTY) + float(_PENALTY)
    scores, listed = {}, given.astype(np.float32).tolist()
    for text, id in vocabulary.index.items():
        score = 0.0 if types[id] == TokenType.USER_DEFINED else listed[id]
        wins = types[id] == TokenType.NORMAL or score >= least or len(text) == 1
        if types[id] in _TEXTUAL and wins:
            scores[text] = max(score, least)
    return scores, least
