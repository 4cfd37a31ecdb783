"""SentencePiece BPE, one of the codecs of `tokenizer_models`."""

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.leftmost import LeftmostMerges
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import SPACE, Vocabulary

# The longest token, in characters, whose merges are listed: merges take quadratic space. The
# longest token in use has about 64 characters.
_LONGEST_PIECE = 512
_TEXTUAL = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNDEFINED)


class SentencePieceCodec:
    """SentencePiece BPE, named llama in `tokenizer.ggml.model`.

    The pair with the best score merges first; among equal scores, the leftmost pair. Unknown
    characters become bytes.
    """

    def __init__(self, vocabulary: Vocabulary, space_prefix: bool):
        self.space_prefix = space_prefix
        self._index = vocabulary.index
        unknown = vocabulary.tokens[vocabulary.ids["unk"]] if "unk" in vocabulary.ids else None
        self._unknown = unknown if isinstance(unknown, str) and unknown in self._index else None
        texts = {byte: f"<0x{byte:02X}>" for byte in range(256)}
        self._bytes = {
            byte: self._index[text] for byte, text in texts.items() if text in self._index
        }
        scores = piece_scores(vocabulary)
        merges = merges_by_score(scores)
        merged = {left + right for left, right in merges} - _always_cut(vocabulary)
        unlisted = {text for text in scores if len(text) > _LONGEST_PIECE}
        self._leftmost = LeftmostMerges(scores, merged, unlisted)
        self._tokenizer = Tokenizer(
            BPE(
                vocabulary.index,
                merges,
                unk_token=self._unknown,
                fuse_unk=True,
                byte_fallback=True,
            )
        )

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the characters that were dropped."""
        start = SPACE if self.space_prefix else ""
        cut = [list(self._leftmost.runs(start + text.replace(" ", SPACE))) for text in texts]
        ranked = [run for runs in cut for run, by_place in runs if not by_place]
        encoded = iter(self._tokenizer.encode_batch_fast(ranked, add_special_tokens=False))
        lacking = self._without_ids(set().union(*ranked))
        found: list[list[int]] = []
        for runs in cut:
            ids: list[int] = []
            for run, by_place in runs:
                ids += self._by_place(run, lacking) if by_place else next(encoded).ids
            found.append(ids)
        return found, [repr(char.replace(SPACE, " ")) for char in sorted(lacking)]

    def _by_place(self, text: str, lacking: set[str]) -> list[int]:
        ids: list[int] = []
        for symbol in self._leftmost.merge(text):
            if symbol in self._index:
                ids.append(self._index[symbol])
            elif self._has_bytes(symbol):
                ids += (self._bytes[byte] for byte in symbol.encode())
            elif self._unknown is not None:
                ids.append(self._index[self._unknown])
            else:
                lacking.add(symbol)
        return ids

    def _without_ids(self, characters: set[str]) -> set[str]:
        """Returns the characters that `tokenizers` drops."""
        if self._unknown is not None or len(self._bytes) == 256:
            return set()
        return {char for char in characters - self._index.keys() if not self._has_bytes(char)}

    def _has_bytes(self, character: str) -> bool:
        return all(byte in self._bytes for byte in character.encode())

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token."""
        return token.replace(SPACE, " ").encode()


def piece_scores(vocabulary: Vocabulary) -> dict[str, float]:
    """Returns text -> score of the tokens that merges can produce."""
    types = vocabulary.types.tolist()
    if vocabulary.scores is None:
        meta.warn(
            "the file has no tokenizer.ggml.scores: SentencePiece merges by score, so the leftmost"
            " pair merges first, which may not be the model's way"
        )
        scores = [0.0] * len(vocabulary)
    else:
        scores = vocabulary.scores.tolist()
    return {text: scores[id] for text, id in vocabulary.index.items() if types[id] in _TEXTUAL}


def _always_cut(vocabulary: Vocabulary) -> set[str]:
    """Returns the user-defined tokens that are split off every text before merging."""
    ids = np.flatnonzero(vocabulary.types == TokenType.USER_DEFINED).tolist()
    texts = (vocabulary.tokens[id] for id in ids)
    return {text for text in texts if isinstance(text, str) and SPACE not in text}


def merges_by_score(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Returns all ways to split a token into two tokens, best score first."""
    merges = [
        (-scores[text], text[:cut], text[cut:])
        for text in scores
        if len(text) <= _LONGEST_PIECE
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])
    return [merge[1:] for merge in merges]
