"""Makes a tokenizer of the package `tokenizers`, which writes tokenizer.json, of a file's keys."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.bpe import splits
from rocmforge_jax.text.pretokenizers import pre_tokenizer
from rocmforge_jax.text.special_ids import DEFAULT_IDS
from rocmforge_jax.text.spm import merges_by_score, piece_scores
from rocmforge_jax.text.token_types import TokenType
from rocmforge_jax.text.tokenizer import tokenizer_from_metadata
from rocmforge_jax.text.vocabulary import SPACE, Vocabulary, read_vocabulary

_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


def tokenizer_json(metadata: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that metadata describe.

    Raises:
        ValueError: Its kind is neither byte-level BPE nor SentencePiece BPE.
        GGUFError: The keys are wrong.
    """
    kind = meta.string(metadata, "tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"a tokenizer of the kind {kind!r} cannot be written, only gpt2 and llama")
    vocabulary = read_vocabulary(metadata, DEFAULT_IDS[kind])
    made = _byte_level(metadata, vocabulary) if kind == "gpt2" else _pieces(metadata, vocabulary)
    made.add_tokens(_added(vocabulary))
    _add_ends(made, metadata, vocabulary)
    return made


def _byte_level(metadata, vocabulary: Vocabulary) -> Tokenizer:
    rule = pre_tokenizer(meta.string(metadata, "tokenizer.ggml.pre", "") or "default")
    if not rule.byte_level:
        raise ValueError("a BPE of characters, not of bytes, cannot be written")
    listed = meta.strings(metadata, "tokenizer.ggml.merges")
    pairs = [tuple(pair.split(" ", 1)) for pair in listed if isinstance(pair, str)]
    merges: Any = [pair for pair in pairs if all(part in vocabulary.index for part in pair)]
    made = Tokenizer(BPE(vocabulary.index, merges, ignore_merges=rule.ignore_merges))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*splits(rule), bytes_of])  # type: ignore
    made.decoder = decoders.ByteLevel()  # type: ignore
    return made


def _pieces(metadata, vocabulary: Vocabulary) -> Tokenizer:
    unknown: Any = vocabulary.tokens[vocabulary.ids["unk"]] if "unk" in vocabulary.ids else None
    merges = merges_by_score(piece_scores(vocabulary))
    options = dict(unk_token=unknown, fuse_unk=True, byte_fallback=True)
    made = Tokenizer(BPE(vocabulary.index, merges, **options))
    prefix = meta.boolean(metadata, "tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    steps = [normalizers.Prepend(SPACE), spaces] if prefix else [spaces]
    made.normalizer = normalizers.Sequence(steps)  # type: ignore
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    made.decoder = decoders.Sequence(back)  # type: ignore
    return made


def _added(vocabulary: Vocabulary) -> list[AddedToken]:
    """The tokens that are read as a whole."""
    return [
        AddedToken(token, normalized=False, special=type != TokenType.USER_DEFINED)
        for token, type in zip(vocabulary.tokens, vocabulary.types.tolist())
        if type in _ADDED and isinstance(token, str) and token in vocabulary.index
    ]


def _add_ends(made: Tokenizer, metadata, vocabulary: Vocabulary) -> None:
    """Adds the tokens that begin and end every text."""
    tokenizer = tokenizer_from_metadata(metadata)
    ends = [
        (tokenizer.bos_id if tokenizer.add_bos else None),
        (tokenizer.eos_id if tokenizer.add_eos else None),
    ]
    texts: list[Any] = [None if id is None else vocabulary.tokens[id] for id in ends]
    if not any(texts):
        return
    template = " ".join(part for part in (texts[0], "$A", texts[1]) if part)
    special = [(text, id) for text, id in zip(texts, ends) if text]
    made.post_processor = processors.TemplateProcessing(  # type: ignore
        single=template, pair=template.replace("$A", "$A $B"), special_tokens=special
    )
