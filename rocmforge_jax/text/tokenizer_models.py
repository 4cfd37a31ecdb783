"""The values of `tokenizer.ggml.model`; each builds a vocabulary and a codec from metadata."""

from dataclasses import dataclass
from typing import Protocol

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.bpe import ByteLevelCodec, CharacterCodec
from rocmforge_jax.text.charsmap import Charsmap
from rocmforge_jax.text.pretokenizers import pre_tokenizer
from rocmforge_jax.text.special_ids import DEFAULT_IDS
from rocmforge_jax.text.spm import SentencePieceCodec
from rocmforge_jax.text.unigram import UnigramCodec
from rocmforge_jax.text.vocabulary import Vocabulary, read_vocabulary
from rocmforge_jax.text.wordpiece import WordPieceCodec

_MERGES = "tokenizer.ggml.merges"


@dataclass(frozen=True)
class Ends:
    """The default start and end tokens, for a file without the keys.

    Attributes:
        bos: Whether a text starts with the bos token.
        eos: Whether a text ends with the eos token.
        sep: Whether a text ends with the sep token.
        always: Names of the tokens that a file cannot switch off.
    """

    bos: bool = False
    eos: bool = False
    sep: bool = False
    always: frozenset[str] = frozenset()


class Codec(Protocol):
    """Encodes texts without special tokens and decodes ordinary tokens.

    Attributes:
        space_prefix: Whether encoding inserts a space before each text.
    """

    space_prefix: bool

    def encode(self, texts: list[str]) -> tuple[list[list[int]], list[str]]:
        """Returns the ids of each text, and descriptions of the parts that have no id."""
        ...

    def decode(self, token: str) -> bytes:
        """Returns the bytes of an ordinary token."""
        ...


def _bpe(metadata):
    pre = meta.string(metadata, "tokenizer.ggml.pre", "")
    if not pre:
        meta.warn(
            "the file has no tokenizer.ggml.pre: splitting words by 'default', which may not be the"
            " model's way"
        )
    return _merged(metadata, "gpt2", pre or "default")


def _gemma4(metadata):
    return _merged(metadata, "gemma4", "gemma4")


def _merged(metadata, model: str, pre: str):
    """Builds a byte pair encoding."""
    rule = pre_tokenizer(pre)
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS[model])
    codec = ByteLevelCodec if rule.byte_level else CharacterCodec
    merges = [] if _lacks_merges(metadata, pre) else meta.strings(metadata, _MERGES)
    ends = Ends(bos=rule.add_bos, always=frozenset({"bos"} if rule.always_bos else ()))
    return vocabulary, codec(vocabulary, merges, rule), ends


def _lacks_merges(metadata, pre: str) -> bool:
    """Returns whether this is a Kimi K2 file without merges, which llama.cpp accepts."""
    lacks = pre == "kimi-k2" and metadata.get(_MERGES) is None
    if lacks:
        meta.warn(f"the file has no {_MERGES}: every byte of a text is a token")
    return lacks


def _sentence_piece(metadata):
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS["llama"])
    space_prefix = meta.boolean(metadata, "tokenizer.ggml.add_space_prefix", True)
    return vocabulary, SentencePieceCodec(vocabulary, space_prefix), Ends(bos=True)


def _word_piece(metadata):
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS["bert"])
    lowercase = meta.boolean(metadata, "tokenizer.ggml.normalizer.lowercase", True)
    strip_accents = meta.boolean(metadata, "tokenizer.ggml.normalizer.strip_accents", lowercase)
    codec = WordPieceCodec(vocabulary, lowercase=lowercase, strip_accents=strip_accents)
    _report_other_start(metadata, vocabulary)
    return vocabulary, codec, Ends(bos=True, sep=True, always=frozenset({"bos", "sep"}))


def _report_other_start(metadata, vocabulary: Vocabulary) -> None:
    """Warns if texts start with another token than the one the encoder was trained with."""
    cls = meta.token_id(metadata, "tokenizer.ggml.cls_token_id", len(vocabulary))
    bos = vocabulary.ids.get("bos")
    if cls not in (bos, None):
        meta.warn(
            f"texts begin with token {bos}, as in llama.cpp, where tokenizer.ggml.cls_token_id is"
            f" {cls}: set tokenizer.ggml.bos_token_id to that"
        )


def _unigram(metadata):
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS["t5"])
    charsmap = meta.octets(metadata, "tokenizer.ggml.precompiled_charsmap")
    codec = UnigramCodec(
        vocabulary,
        None if charsmap is None else Charsmap(charsmap),
        space_prefix=meta.boolean(metadata, "tokenizer.ggml.add_space_prefix", False),
        merge_spaces=meta.boolean(metadata, "tokenizer.ggml.remove_extra_whitespaces", False),
    )
    return vocabulary, codec, Ends(eos=True)


MODELS = {
    "gpt2": _bpe,
    "llama": _sentence_piece,
    "gemma4": _gemma4,
    "bert": _word_piece,
    "t5": _unigram,
}
