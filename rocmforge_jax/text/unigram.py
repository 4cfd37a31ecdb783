"""Unigram, one of the codecs of `tokenizer_models`. Uses the `tokenizers` library."""

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.charsmap import Charsmap
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import SPACE, Vocabulary

_TEXTUAL = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
_UNKNOWN = 0  # the library's id of unknown characters
_PENALTY = np.float32(10)  # an unknown character scores this much below the lowest score


class UnigramCodec:
    """Unigram, named t5 in `tokenizer.ggml.model`.

    It selects the split of a text with the greatest sum of scores. Each run of characters without
    tokens becomes one unknown token.

    Args:
        vocabulary: The tokens with their scores.
        charsmap: The replacements to apply to a text first.
        space_prefix: Whether to insert a space before the first word of a text.
        merge_spaces: Whether each word gets exactly one space before it, regardless of the text.
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
        # The library uses its own ids, in which an unknown character is a token with empty text.
        self._ids = [vocabulary.ids.get("unk"), *map(vocabulary.index.__getitem__, scores)]
        self._tokenizer = Tokenizer(Unigram([("", least), *scores.items()], unk_id=_UNKNOWN))

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the parts that were dropped."""
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
        """Returns the bytes of an ordinary token."""
        return token.replace(SPACE, " ").encode()


def _scores(vocabulary: Vocabulary) -> tuple[dict[str, float], float]:
    """Returns the scores of the usable tokens, and the lowest score among them.

    The library scores an unknown character 10 below the lowest score of all tokens, llama.cpp 10
    below the lowest score of normal tokens. So other tokens with a lower score are dropped. Unused
    tokens, for example, have -10000 and would never be selected.
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
