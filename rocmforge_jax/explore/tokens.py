"""Tokens of a text as coloured spans."""

import dataclasses
from typing import Any

from rocmforge_jax.explore.prompts import Text, checked_ids, pieces
from rocmforge_jax.gguf.errors import listed
from rocmforge_jax.html import COLOURS, element, joined, spans


@dataclasses.dataclass(frozen=True, repr=False)
class TokenizedText:
    """A text in its tokens. In a notebook they are coloured spans.

    Attributes:
        ids: The tokens.
        pieces: Their texts. A token that is no whole character is written as its bytes.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    def __len__(self):
        return len(self.ids)

    def __repr__(self):
        return f"{len(self)} tokens: {listed(list(map(repr, self.pieces)), ' ', most=50)}"

    def _repr_html_(self) -> str:
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(self))]
        titles = (f"{i}: token {id}" for i, id in enumerate(self.ids))
        count = element("small", f"{len(self)} tokens")
        return joined(spans(self.pieces, colours, titles), count)


def tokens(
    tokenizer: Any, text: Text, *, add_special: bool = False, parse_special: bool = False
) -> TokenizedText:
    """Cuts a text into its tokens.

    Args:
        tokenizer: A Tokenizer, or a LanguageModel.
        text: A text, or the ids of its tokens.
        add_special: Whether to add the tokens that begin and end a text.
        parse_special: Whether to read control tokens that are written in the text.

    Raises:
        TypeError: The text is neither a text nor ids.
        ValueError: An id is outside the vocabulary.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if isinstance(text, str):
        text = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    ids = checked_ids(text, tokenizer.vocab_size)
    return TokenizedText(tuple(ids), tuple(pieces(tokenizer, ids)))
