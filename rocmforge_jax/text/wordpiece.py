"""WordPiece, one of the codecs of `tokenizer_models`.

The WordPiece of `tokenizers` is not used. Its time grows with the square of a word's length, and it
normalises texts differently from llama.cpp.
"""

import unicodedata
from collections import defaultdict

from rocmforge_jax.text.vocabulary import SPACE, Vocabulary

# The ideographs that are words of their own. As in llama.cpp and `tokenizers`, and unlike BERT's
# original code, U+2B820 to U+2B91F are excluded.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_SEPARATORS_OF_FILES = "\x1c\x1d\x1e\x1f"  # white space in Python, control characters in Unicode


class WordPieceCodec:
    """WordPiece, named bert in `tokenizer.ggml.model`.

    It repeatedly takes the longest token from the left of a word. A word that cannot be split
    completely becomes the unknown token. Tokens that begin a word start with U+2581 in the file.
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, *, lowercase: bool, strip_accents: bool):
        self._index, self._unknown = vocabulary.index, vocabulary.ids.get("unk")
        self._characters = _Characters(lowercase, strip_accents)
        lengths: dict[str, set[int]] = defaultdict(set)
        for token in self._index:
            lengths[token[:2]].add(len(token))
        # First two characters of tokens -> their lengths, longest first.
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the words that were dropped."""
        split = [list(filter(None, text.translate(self._characters).split(" "))) for text in texts]
        pieces = {word: self._pieces(SPACE + word) for word in set().union(*split)}
        lacking = [repr(word) for word in sorted(pieces) if not pieces[word]]
        return [[id for word in words for id in pieces[word]] for words in split], lacking

    def _pieces(self, word: str) -> list[int]:
        """Splits a word from the left. If no token fits at some point, the word is unknown."""
        ids, start = [], 0
        while start < len(word):
            length = self._longest(word, start)
            if not length:
                return [] if self._unknown is None else [self._unknown]
            ids.append(self._index[word[start : start + length]])
            start += length
        return ids

    def _longest(self, word: str, start: int) -> int:
        """Returns the length of the longest token at `start`, or 0 if no token fits."""
        for length in self._lengths.get(word[start : start + 2], ()):
            if word[start : start + length] in self._index:
                return length
        return int(word[start] in self._index)

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token."""
        return token.replace(SPACE, " ").encode()


class _Characters(dict[int, str]):
    """A table for `str.translate` that normalises characters and separates words with spaces.

    As in llama.cpp, accents are stripped by keeping the first character of each decomposition.
    """

    def __init__(self, lowercase: bool, strip_accents: bool):
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = self._written(chr(code))
        return self[code]

    def _written(self, char: str) -> str:
        if self._strip_accents:
            char = unicodedata.normalize("NFD", char)[0]
        category = unicodedata.category(char)
        if char.isspace() and char not in _SEPARATORS_OF_FILES:
            return " "
        if char in "\0\ufffd" or category in ("Cc", "Cf", "Co"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        written = char.lower()[0] if self._lowercase else char
        return f" {written} " if _is_a_word(char, category) else written


def _is_a_word(char: str, category: str) -> bool:
    """Returns whether a character is always a word of its own."""
    return (
        category[0] == "P"
        or (category[0] == "S" and char < "\x7f")
        or any(first <= ord(char) <= last for first, last in _IDEOGRAPHS)
    )
