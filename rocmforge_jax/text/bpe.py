"""Byte pair encoding: the codecs of `tokenizer_models` for bytes and for characters."""

import re
from itertools import chain

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from rocmforge_jax.text.merges import RankedMerges
from rocmforge_jax.text.pretokenizers import PreTokenizer
from rocmforge_jax.text.vocabulary import Vocabulary

# GPT-2 writes each byte as one printable character: a printable byte as itself, any other byte as
# the next unused character from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_SHIFTED = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHAR_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + i) for i, byte in enumerate(_SHIFTED)
}
_BYTE_OF_CHAR = {char: byte for byte, char in _CHAR_OF_BYTE.items()}
_NAME_OF_BYTE = {byte: f"<0x{byte:02X}>" for byte in range(256)}


class ByteLevelCodec:
    """Byte-level BPE, named gpt2 in `tokenizer.ggml.model`.

    Regular expressions split the text into words, whose bytes are written as printable characters.
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str | bytes], rule: PreTokenizer):
        words = Sequence([*splits(rule), ByteLevel(add_prefix_space=False, use_regex=False)])
        self._merges = RankedMerges(
            vocabulary,
            merges,
            words,
            _CHAR_OF_BYTE,
            _bytes_of_printable,
            ignore_merges=rule.ignore_merges,
        )

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of the bytes that were dropped."""
        return self._merges.encode(texts)

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token.

        A token that is not in the byte-level alphabet was added after training and is plain text.
        """
        written = _bytes_of_printable(token)
        return token.encode() if written is None else written


class CharacterCodec:
    """BPE on characters. Characters outside the vocabulary become bytes.

    `tokenizer.ggml.model` names it gemma4, or gpt2 if the pre-tokenizer is not byte-level.
    """

    space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: list[str | bytes], rule: PreTokenizer):
        self._space = rule.space
        tokens = vocabulary.index.items() if rule.whole_newlines else ()
        self._newlines: dict[str, int] = {text: id for text, id in tokens if not text.strip("\n")}
        self._merges = RankedMerges(
            vocabulary,
            merges,
            Sequence(splits(rule)),
            _NAME_OF_BYTE,
            str.encode,
            byte_fallback=True,
        )

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of the bytes that were dropped."""
        cut = [self._cut(text.replace(" ", self._space)) for text in texts]
        runs = [run for text in cut for run in text if isinstance(run, str)]
        encoded, lacking = self._merges.encode(runs)
        next_ids = iter(encoded).__next__
        found = [(next_ids() if isinstance(run, str) else [run] for run in text) for text in cut]
        return [list(chain.from_iterable(text)) for text in found], lacking

    def _cut(self, text: str) -> list[str | int]:
        """Splits off the runs of newlines that are tokens, regardless of the merges."""
        if not self._newlines:
            return [text]
        runs: list[str] = re.findall("\n+|[^\n]+", text)
        return [self._newlines.get(run, run) for run in runs]

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token."""
        return token.replace(self._space, " ").encode()


def splits(rule: PreTokenizer) -> list[Split]:
    """Returns what cuts a text into words, in order."""
    return [Split(Regex(pattern), "isolated") for pattern in rule.patterns]


def _bytes_of_printable(text: str) -> bytes | None:
    """Returns the bytes that printable characters represent, or None for any other text."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in text)
    except KeyError:
        return None
