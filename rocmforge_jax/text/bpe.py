"""Byte-level BPE, one of the two ways in which a vocabulary holds text.

The `tokenizers` library does the merging. A codec encodes texts without special tokens and gives
the bytes of ordinary tokens. `space_prefix` says whether it puts a space before each text that it
encodes.
"""

from collections.abc import Iterator
from itertools import chain

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text.pretokenizers import PreTokenizer
from rocmforge_jax.text.vocabulary import Vocabulary

# GPT-2 writes a byte as one printable character: itself where it is one, otherwise the next free
# one from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SHIFTED = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + i) for i, byte in enumerate(_SHIFTED)
}
_BYTE_OF_CHAR = {char: byte for byte, char in _CHAR_OF_BYTE.items()}


class ByteLevelCodec:
    """Byte-level BPE, which `tokenizer.ggml.model` calls gpt2.

    Regular expressions cut the text into words, whose bytes are written as printable characters.
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str | bytes], rule: PreTokenizer):
        model = BPE(
            vocabulary.index,
            _checked_merges(merges, vocabulary.index),
            ignore_merges=rule.ignore_merges,
        )
        splits = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = Sequence(
            [*splits, ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        self._missing = bytes(
            byte for byte, char in _CHAR_OF_BYTE.items() if char not in vocabulary.index
        )

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """The ids of each text. ValueError where the vocabulary lacks a byte of it."""
        for text in texts if self._missing else ():
            lacking = set(text.encode()) & set(self._missing)
            if lacking:
                raise ValueError(
                    f"the vocabulary has no token for the byte 0x{min(lacking):02X} of the text"
                )
        return (
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )

    def decode(self, token: str) -> bytes:
        """The bytes of an ordinary token.

        One that is no byte-level text (added after training) stands for itself.
        """
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()


def _checked_merges(merges, index) -> list[tuple[str, str]]:
    """Pairs in order of rank.

    GGUFError for a merge that is not two tokens that make a token: `tokenizers` aborts on some.
    """
    merges = list(dict.fromkeys(merges))  # the first rank counts
    if all(isinstance(merge, str) for merge in merges):
        pairs = [tuple(merge.split(" ")) for merge in merges]
        texts = chain(chain.from_iterable(pairs), map("".join, pairs))
        if set(map(len, pairs)) <= {2} and all(map(index.__contains__, texts)):
            return pairs
    raise GGUFError(_first_fault(merges, index))


def _first_fault(merges, index) -> str:
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else ()
        if len(parts) != 2:
            return (
                f"merge {rank} of tokenizer.ggml.merges is {merge!r}: expected two tokens with one"
                " space between them"
            )
        for text in (*parts, "".join(parts)):
            if text not in index:
                return (
                    f"merge {rank} of tokenizer.ggml.merges is {merge!r}, but {text!r} is not in"
                    " the vocabulary"
                )
    raise AssertionError("no fault found")
