"""Reads and checks the vocabulary of a GGUF file: tokens, types, scores and special ids."""

import re
from dataclasses import dataclass

import numpy as np

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text import special_ids
from rocmforge_jax.text.token_types import TokenType

SPACE = "▁"  # represents a space in the tokens of codecs that are not byte-level


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """The tokens of a GGUF file.

    Attributes:
        tokens: The text of each token, or bytes if it is not UTF-8.
        index: Text -> id.
        types: [V] values of TokenType.
        scores: [V] numbers, or None if the file has no scores.
        ids: Name -> id of the special tokens that exist, such as {"bos": 1}.
        stop_ids: The tokens that end a generation.
        suppressed_ids: The tokens that are never generated.
    """

    tokens: list[str | bytes]
    index: dict[str, int]
    types: np.ndarray
    scores: np.ndarray | None
    ids: dict[str, int]
    stop_ids: frozenset[int]
    suppressed_ids: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.tokens)


def read_vocabulary(metadata, default_ids: dict[str, int]) -> Vocabulary:
    """Reads and checks the vocabulary.

    Args:
        metadata: The file's key-value pairs.
        default_ids: Name -> special id, for ids that the file does not specify.
    """
    tokens = meta.strings(metadata, "tokenizer.ggml.tokens")
    index = _index(tokens)
    types, scores = _types(metadata, tokens), _scores(metadata, len(tokens))
    given = special_ids.special_ids(metadata, index, len(tokens))
    ids = {name: id for name, id in default_ids.items() if id < len(tokens)} | given
    stop_ids, types = special_ids.endings(tokens, index, types, ids, given)
    suppressed_ids = meta.token_ids(metadata, "tokenizer.ggml.suppress_tokens", len(tokens))
    return Vocabulary(tokens, index, types, scores, ids, stop_ids, suppressed_ids)


def _index(tokens) -> dict[str, int]:
    """Returns text -> id of the tokens that are UTF-8 and not empty."""
    if not tokens:
        raise GGUFError("tokenizer.ggml.tokens is empty")
    index = {token: id for id, token in enumerate(tokens) if token and isinstance(token, str)}
    seen: dict = {}
    if len(index) < len(tokens):
        for id, token in enumerate(tokens):
            if token and seen.setdefault(token, id) != id:
                raise GGUFError(
                    f"the token {token!r} is twice in the vocabulary, as id {seen[token]} and id"
                    f" {id}"
                )
    return index


def _types(metadata, tokens) -> np.ndarray:
    types = meta.numbers(metadata, "tokenizer.ggml.token_type", len(tokens), integral=True)
    if types is None:
        return np.full(len(tokens), TokenType.NORMAL, np.int32)
    wrong = np.flatnonzero((types < min(TokenType)) | (types > max(TokenType)))
    if wrong.size:
        meta.warn(
            f"tokenizer.ggml.token_type[{wrong[0]}] is {types[wrong[0]]}: types are"
            f" {min(TokenType)} to {max(TokenType)}. {wrong.size} such tokens have no text"
        )
        types = types.copy()
        types[wrong] = TokenType.UNDEFINED
    types = types.astype(np.int32)
    unread = [id for id in np.flatnonzero(types == TokenType.BYTE) if not _is_byte(tokens[id])]
    if unread:
        meta.warn(
            f"token {unread[0]} of type byte reads {tokens[unread[0]]!r}: byte tokens read <0x00>"
            f" to <0xFF>. {len(unread)} such tokens are taken for text"
        )
        types[unread] = TokenType.NORMAL
    return types


def _is_byte(token: str | bytes) -> bool:
    return isinstance(token, str) and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token) is not None


def _scores(metadata, vocab_size) -> np.ndarray | None:
    scores = meta.numbers(metadata, "tokenizer.ggml.scores", vocab_size, integral=False)
    if scores is not None and (wrong := np.flatnonzero(np.isnan(scores))).size:
        raise GGUFError(f"tokenizer.ggml.scores[{wrong[0]}] is not a number")
    return scores
