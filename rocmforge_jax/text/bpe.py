"""Byte-level BPE: a codec of `tokenizer_models`. The `tokenizers` library does the merging."""

from collections.abc import Iterator
from itertools import chain

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from rocmforge_jax.text import metadata as meta
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
_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class ByteLevelCodec:
    """Byte-level BPE, which `tokenizer.ggml.model` calls gpt2.

    Regular expressions cut the text into words, whose bytes are written as printable characters.

    Merges work on text, as in llama.cpp. Bytes and results of merges that the vocabulary lacks get
    ids beyond it, which are replaced by those of their bytes in the end.
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str | bytes], rule: PreTokenizer):
        self._index, self._size = vocabulary.index, len(vocabulary)
        pairs, outside = _pairs(merges, self._index)
        self._outside = list(dict.fromkeys([*_missing_bytes(self._index), *outside]))
        ids = self._index | {text: id for id, text in enumerate(self._outside, self._size)}
        self._tokenizer = Tokenizer(BPE(ids, pairs, ignore_merges=rule.ignore_merges))
        splits = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
        self._tokenizer.pre_tokenizer = Sequence(
            [*splits, ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of the bytes that were left out."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        encoded, lacking = [encoding.ids for encoding in encodings], set()
        if self._outside:
            encoded = [self._within(ids, lacking) for ids in encoded]
        return encoded, [f"byte 0x{byte:02X}" for byte in sorted(lacking)]

    def _within(self, ids: list[int], lacking: set[int]) -> list[int]:
        """Replaces ids beyond the vocabulary by those of their bytes.

        Bytes that the vocabulary lacks are left out and added to `lacking`.
        """
        if max(ids, default=0) < self._size:
            return ids
        within = []
        for id in ids:
            if id < self._size:
                within.append(id)
                continue
            for char in self._outside[id - self._size]:
                if char in self._index:
                    within.append(self._index[char])
                else:
                    lacking.add(_BYTE_OF_CHAR[char])
        return within

    def decode(self, token: str) -> bytes:
        """The bytes of an ordinary token.

        One that is no byte-level text (added after training) stands for itself.
        """
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()


def _pairs(merges, index) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the pairs that may merge, in order of rank, and their texts that are not tokens.

    A repeated pair keeps its first rank.
    """
    merges = list(dict.fromkeys(merges))
    pairs = [_pair(merge) for merge in merges]
    if all(map(index.__contains__, _texts(pairs))):
        return pairs, []
    odd = [merge for merge, pair in zip(merges, pairs) if not index.keys() >= set(_texts([pair]))]
    meta.warn(
        f"{len(odd)} of {len(merges)} merges of tokenizer.ggml.merges are not two tokens that make"
        f" a token; the first is {odd[0]!r}"
    )
    pairs = [pair for pair in dict.fromkeys(pairs) if all(pair) and _is_byte_level("".join(pair))]
    return pairs, [text for text in _texts(pairs) if text not in index]


def _texts(pairs: list[tuple[str, str]]) -> Iterator[str]:
    """Iterates over the parts and the results of merges."""
    return chain(chain.from_iterable(pairs), map("".join, pairs))


def _pair(merge: str | bytes) -> tuple[str, str]:
    """Splits a merge at its first space, which is never the first character, as llama.cpp does."""
    if isinstance(merge, bytes):
        return "", ""
    at = merge.find(" ", 1)
    return (merge[:at], merge[at + 1 :]) if at > 0 else ("", "")


def _is_byte_level(text: str) -> bool:
    return _BYTE_OF_CHAR.keys() >= set(text)


def _missing_bytes(index) -> list[str]:
    """Lists the bytes of UTF-8 that are not tokens."""
    return [
        char
        for byte, char in _CHAR_OF_BYTE.items()
        if char not in index and byte not in _NEVER_IN_UTF8
    ]
