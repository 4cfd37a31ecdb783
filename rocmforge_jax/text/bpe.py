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
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str | bytes], rule: PreTokenizer):
        model = BPE(
            vocabulary.index,
            _usable_merges(merges, vocabulary.index),
            ignore_merges=rule.ignore_merges,
        )
        steps = [
            *(Split(Regex(pattern), "isolated") for pattern in rule.patterns),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = Sequence(steps)
        self._missing = {
            byte
            for byte, char in _CHAR_OF_BYTE.items()
            if char not in vocabulary.index and byte not in _NEVER_IN_UTF8
        }
        # `tokenizers` would merge the neighbours of a byte that it leaves out.
        missing = "".join(f"\\x{{{ord(_CHAR_OF_BYTE[byte]):x}}}" for byte in self._missing)
        self._without_missing = Tokenizer(model)
        self._without_missing.pre_tokenizer = Sequence(
            [*steps, Split(Regex(f"[{missing}]"), "isolated")] if missing else steps
        )

    def encode(self, texts: list[str]) -> Iterator[list[int]]:
        """The ids of each text."""
        tokenizer = self._without_missing if self.lacking(texts) else self._tokenizer
        return (
            encoding.ids
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )

    def lacking(self, texts: list[str]) -> list[str]:
        """Names the bytes that have no token: `encode` leaves them out."""
        if not self._missing:
            return []
        found = self._missing.intersection("".join(texts).encode())
        return [f"byte 0x{byte:02X}" for byte in sorted(found)]

    def decode(self, token: str) -> bytes:
        """The bytes of an ordinary token.

        One that is no byte-level text (added after training) stands for itself.
        """
        try:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        except KeyError:
            return token.encode()


def _usable_merges(merges, index) -> list[tuple[str, str]]:
    """Returns pairs in order of rank; a repeated one keeps its first rank.

    A merge applies only where two tokens make a token. `tokenizers` refuses or aborts on others, so
    they are left out, with one warning.
    """
    merges = list(dict.fromkeys(merges))
    pairs = [_pair(merge) for merge in merges]
    texts = chain(chain.from_iterable(pairs), map("".join, pairs))
    if all(map(index.__contains__, texts)):
        return pairs
    usable = [pair for pair in pairs if _applies(pair, index)]
    first = next(merge for merge, pair in zip(merges, pairs) if not _applies(pair, index))
    meta.warn(
        f"{len(pairs) - len(usable)} of {len(pairs)} merges of tokenizer.ggml.merges are left out:"
        f" they are not two tokens that make a token. The first is {first!r}"
    )
    return usable


def _pair(merge: str | bytes) -> tuple[str, str]:
    """Splits a merge at its first space, which is never the first character, as llama.cpp does."""
    if isinstance(merge, bytes):
        return "", ""
    at = merge.find(" ", 1)
    return (merge[:at], merge[at + 1 :]) if at > 0 else ("", "")


def _applies(pair: tuple[str, str], index) -> bool:
    return pair[0] in index and pair[1] in index and "".join(pair) in index
