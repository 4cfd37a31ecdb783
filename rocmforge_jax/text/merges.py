"""Merges by rank, for byte pair encoding. Uses the `tokenizers` library."""

from collections.abc import Callable, Iterator
from itertools import chain

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.vocabulary import Vocabulary

_NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class RankedMerges:
    """Splits texts into words and merges their characters, lowest rank first.

    Merges work on text, as in llama.cpp. Bytes and merge results that the vocabulary lacks get
    temporary ids beyond it. In the end these are replaced by the ids of their bytes.

    Args:
        vocabulary: The tokens.
        merges: Pairs of texts separated by a space, in order of rank.
        words: Splits a text into words and, if needed, writes their bytes as characters.
        byte_names: Byte -> the token that represents it.
        bytes_of: Returns the bytes of a merge's text, or None if no text can contain it.
        options: Options of the library's BPE model.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: list[str | bytes],
        words: PreTokenizer,
        byte_names: dict[int, str],
        bytes_of: Callable[[str], bytes | None],
        **options: bool,
    ):
        self._size = len(vocabulary)
        self._ids = {byte: vocabulary.index.get(name) for byte, name in byte_names.items()}
        pairs, outside = _pairs(merges, vocabulary.index, bytes_of)
        lacking = {
            byte_names[byte]: bytes([byte])
            for byte, id in self._ids.items()
            if id is None and byte not in _NEVER_IN_UTF8
        }
        texts = lacking | {text: bytes_of(text) or b"" for text in outside if text not in lacking}
        self._outside = list(texts.values())
        ids = vocabulary.index | {text: id for id, text in enumerate(texts, self._size)}
        self._tokenizer = Tokenizer(BPE(ids, pairs, **options))
        self._tokenizer.pre_tokenizer = words

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of the bytes that were dropped."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        encoded, lacking = [encoding.ids for encoding in encodings], set()
        if self._outside:
            encoded = [self._within(ids, lacking) for ids in encoded]
        return encoded, [f"byte 0x{byte:02X}" for byte in sorted(lacking)]

    def _within(self, ids: list[int], lacking: set[int]) -> list[int]:
        """Replaces ids beyond the vocabulary by the ids of their bytes.

        Bytes that the vocabulary lacks are dropped and added to `lacking`.
        """
        if max(ids, default=0) < self._size:
            return ids
        within = []
        for id in ids:
            if id < self._size:
                within.append(id)
                continue
            for byte in self._outside[id - self._size]:
                if (of_byte := self._ids[byte]) is None:
                    lacking.add(byte)
                else:
                    within.append(of_byte)
        return within


def _pairs(merges, index, bytes_of) -> tuple[list[tuple[str, str]], list[str]]:
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
    pairs = [
        pair for pair in dict.fromkeys(pairs) if all(pair) and bytes_of("".join(pair)) is not None
    ]
    return pairs, list(dict.fromkeys(text for text in _texts(pairs) if text not in index))


def _texts(pairs: list[tuple[str, str]]) -> Iterator[str]:
    """Iterates over the parts of all merges, then over their results."""
    return chain(chain.from_iterable(pairs), map("".join, pairs))


def _pair(merge: str | bytes) -> tuple[str, str]:
    """Splits a merge at its first space after the first character, as llama.cpp does."""
    if isinstance(merge, bytes):
        return "", ""
    at = merge.find(" ", 1)
    return (merge[:at], merge[at + 1 :]) if at > 0 else ("", "")
