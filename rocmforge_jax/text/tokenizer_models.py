"""The tokenizer models that a file may name: each makes a vocabulary and a codec of metadata."""

from typing import Protocol

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.bpe import ByteLevelCodec
from rocmforge_jax.text.pretokenizers import pre_tokenizer
from rocmforge_jax.text.special_ids import DEFAULT_IDS
from rocmforge_jax.text.spm import SentencePieceCodec
from rocmforge_jax.text.vocabulary import read_vocabulary


class Codec(Protocol):
    """Encodes texts without special tokens, and gives the bytes of ordinary tokens.

    space_prefix: whether it puts a space before each text that it encodes.
    """

    space_prefix: bool

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and the names of what has no id and is left out."""
        ...

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token."""
        ...


def _byte_level(metadata):
    pre = meta.string(metadata, "tokenizer.ggml.pre", "")
    if not pre:
        meta.warn(
            "the file has no tokenizer.ggml.pre: splitting words by 'default', which may not be the"
            " model's way"
        )
    rule = pre_tokenizer(pre or "default")
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS["gpt2"])
    return (
        vocabulary,
        ByteLevelCodec(vocabulary, meta.strings(metadata, "tokenizer.ggml.merges"), rule),
        rule.add_bos,
    )


def _sentence_piece(metadata):
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS["llama"])
    space_prefix = meta.boolean(metadata, "tokenizer.ggml.add_space_prefix", True)
    return vocabulary, SentencePieceCodec(vocabulary, space_prefix), True


MODELS = {"gpt2": _byte_level, "llama": _sentence_piece}
