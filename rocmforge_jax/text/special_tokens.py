"""Splits a text at special tokens, some of which absorb adjacent white space."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.vocabulary import Vocabulary

_SPECIAL = (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN)
_WHITE_SPACE = " \t\n\v\f\r"  # C's isspace


@dataclass(frozen=True)
class SpecialToken:
    """A token that is never merged from text.

    Attributes:
        text: The token's text.
        id: The token's id.
        type: The token's type.
        takes_before: Whether it absorbs the white space before it.
        takes_after: Whether it absorbs the white space after it.
    """

    text: str
    id: int
    type: TokenType
    takes_before: bool = False
    takes_after: bool = False


def special_tokens(vocabulary: Vocabulary, metadata) -> list[SpecialToken]:
    """Returns the special tokens, longest first.

    llama.cpp searches for the longest special token first, anywhere in the text.
    """
    texts = {}
    for id in np.flatnonzero(np.isin(vocabulary.types, _SPECIAL)).tolist():
        text = vocabulary.tokens[id]
        if isinstance(text, str) and text in vocabulary.index:
            texts[text] = id
    before, after = _white_space_rules(metadata, texts)
    found = [
        SpecialToken(text, id, TokenType(vocabulary.types[id]), text in before, text in after)
        for text, id in texts.items()
    ]
    return sorted(found, key=lambda token: -len(token.text.encode()))


def _white_space_rules(metadata, special) -> tuple[set[str], set[str]]:
    """Returns the tokens that absorb the white space before them, and those that absorb it after.

    GGUF has no key for these rules. As in llama.cpp, they depend on the model's name, its
    architecture and its pre-tokenizer.
    """
    name, architecture, pre = (
        str(metadata.get(key, ""))
        for key in ("general.name", "general.architecture", "tokenizer.ggml.pre")
    )
    name = name.lower()
    if _has_any(pre, "jina-v2-de", "jina-v2-es", "jina-v2-code") or _has_any(
        architecture, "nomic-bert-moe", "jina-bert-v3"
    ):
        return {"<mask>"}, set()
    if _has_any(name, "phi-3", "phi3"):
        return set(), set(special) - {"<unk>", "<s>", "<|endoftext|>"}
    if _has_any(name, "modern-bert"):
        return {"[MASK]"}, set()
    return set(), set()


def _has_any(text: str, *parts: str) -> bool:
    return any(part in text for part in parts)


def split(text: str, special: list[SpecialToken]) -> list[str | int]:
    """Splits `text` at special tokens into non-empty texts and token ids."""
    parts: list[str | int] = [text] if text else []
    for token in special:
        if token.text in text:
            parts = [cut for part in parts for cut in _cut(part, token)]
    return parts


def _cut(part: str | int, token: SpecialToken) -> Iterator[str | int]:
    if isinstance(part, int):
        yield part
        return
    start = 0
    while (at := part.find(token.text, start)) >= 0:
        before, start = part[start:at], at + len(token.text)
        if token.takes_before:
            before = before.rstrip(_WHITE_SPACE)
        while token.takes_after and part[start : start + 1] in _WHITE_SPACE and start < len(part):
            start += 1
        if before:
            yield before
        yield token.id
    if start < len(part):
        yield part[start:]
