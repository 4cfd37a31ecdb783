"""Cuts a text at special tokens."""

from collections.abc import Iterator

import numpy as np

from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import Vocabulary


def by_length(vocabulary: Vocabulary, *types: TokenType) -> list[tuple[str, int]]:
    """Lists (text, id) of the tokens of these types, longest first.

    llama.cpp reads the longest special token first, wherever it is in the text.
    """
    ids = np.flatnonzero(np.isin(vocabulary.types, types)).tolist()
    texts = ((vocabulary.tokens[id], id) for id in ids)
    found = [(text, id) for text, id in texts if isinstance(text, str) and text in vocabulary.index]
    return sorted(found, key=lambda token: -len(token[0].encode()))


def split(text: str, special: list[tuple[str, int]]) -> list[str | int]:
    """Cut `text` at special tokens: texts that are not empty, and the ids between them."""
    parts: list[str | int] = [text] if text else []
    for token, id in special:
        if token in text:
            parts = list(_cut(parts, token, id))
    return parts


def _cut(parts, token: str, id: int) -> Iterator[str | int]:
    for part in parts:
        if isinstance(part, int):
            yield part
            continue
        for i, piece in enumerate(part.split(token)):
            if i:
                yield id
            if piece:
                yield piece
