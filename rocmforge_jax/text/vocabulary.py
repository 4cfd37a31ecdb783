"""Reads and checks the vocabulary of a GGUF file: tokens, types, scores and special ids.

The keys are those of the GGUF specification; which tokens end a generation follows llama.cpp
(src/llama-vocab.cpp).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import metadata as meta


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# name -> the keys that may hold its id; the later ones are older spellings.
_ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),  # spelled so in the specification
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}

# name -> the texts by which a token is recognised where no key names it, the first that the
# vocabulary has.
_ID_TEXTS = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

_STOP_NAMES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_STOP_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)

# Parts of a message that gpt-oss writes and a caller must see.
_VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """tokens: text, or bytes where that is not UTF-8.

    index: text -> id. types: [V] of TokenType. scores: [V] numbers, None where the file has none.
    ids: {"bos": 1, ...}, only those that exist. stop_ids: the tokens that end a generation.
    """

    tokens: list[str | bytes]
    index: dict[str, int]
    types: np.ndarray
    scores: np.ndarray | None
    ids: dict[str, int]
    stop_ids: frozenset[int]

    def __len__(self) -> int:
        return len(self.tokens)


def read_vocabulary(metadata, default_ids: dict[str, int]) -> Vocabulary:
    """Read and check the vocabulary.

    `default_ids` are the special ids of its kind where no key gives them.
    """
    tokens = meta.strings(metadata, "tokenizer.ggml.tokens")
    index = _index(tokens)
    types, scores = _types(metadata, tokens), _scores(metadata, len(tokens))
    ids = {name: id for name, id in default_ids.items() if id < len(tokens)} | _special_ids(
        metadata, index, len(tokens)
    )
    stop_ids = _stop_ids(index, types, ids)
    return Vocabulary(tokens, index, _amended(types, index, ids, stop_ids), scores, ids, stop_ids)


def _index(tokens) -> dict[str, int]:
    """Text -> id of the tokens that a text can hold: not empty, and UTF-8."""
    if not tokens:
        raise GGUFError("tokenizer.ggml.tokens is empty")
    index = {token: id for id, token in enumerate(tokens) if token and isinstance(token, str)}
    seen: dict = {}
    if len(index) < len(tokens):
        for id, token in enumerate(tokens):
            if token and seen.setdefault(token, id) != id:
                raise GGUFError(
                    f"the token {token!r} is twice in the vocabulary, as id {seen[token]} and id"
                    f" {id}"
                )
    return index


def _types(metadata, tokens) -> np.ndarray:
    types = meta.numbers(metadata, "tokenizer.ggml.token_type", len(tokens), integral=True)
    if types is None:
        return np.full(len(tokens), TokenType.NORMAL, np.int32)
    if (wrong := np.flatnonzero((types < min(TokenType)) | (types > max(TokenType)))).size:
        raise GGUFError(
            f"tokenizer.ggml.token_type[{wrong[0]}] is {types[wrong[0]]}: types are"
            f" {min(TokenType)} to {max(TokenType)}"
        )
    byte_texts = {f"<0x{value:02X}>" for value in range(256)}
    for id in np.flatnonzero(types == TokenType.BYTE):
        if tokens[id] not in byte_texts:
            raise GGUFError(
                f"token {id} is of type byte and reads {tokens[id]!r}: byte tokens read <0x00> to"
                " <0xFF>"
            )
    return types.astype(np.int32)


def _scores(metadata, vocab_size) -> np.ndarray | None:
    scores = meta.numbers(metadata, "tokenizer.ggml.scores", vocab_size, integral=False)
    if scores is not None and (wrong := np.flatnonzero(np.isnan(scores))).size:
        raise GGUFError(f"tokenizer.ggml.scores[{wrong[0]}] is not a number")
    return scores


def _special_ids(metadata, index, vocab_size) -> dict[str, int]:
    ids = {}
    for name, keys in _ID_KEYS.items():
        given = [meta.token_id(metadata, f"tokenizer.ggml.{key}", vocab_size) for key in keys]
        given += [index.get(text) for text in _ID_TEXTS.get(name, ())]
        found = [id for id in given if id is not None]
        if found:
            ids[name] = found[0]
    return ids


def _stop_ids(index, types, ids) -> frozenset[int]:
    stops = {ids[name] for name in _STOP_NAMES if name in ids}
    stops |= {
        index[text]
        for text in _STOP_TEXTS
        if text in index and (text != "</s>" or _is_marked(types[index[text]]))
    }
    named = {text for text in _STOP_TEXTS if index.get(text) in stops}
    # Harmony (gpt-oss) and Solar end a message, not the answer, with <|end|>; Gemma 4 has an unused
    # </s>.
    if (
        "<|end|>" in named
        and named & {"<|call|>", "<|calls|>"}
        and named & {"<|return|>", "<|flush|>"}
    ):
        stops.discard(index["<|end|>"])
    if {"<|tool_response>", "</s>"} <= named:
        stops.discard(index["</s>"])
    return frozenset(stops)


def _is_marked(token_type) -> bool:
    """Whether the file sets the token apart from text.

    Qwen's "</s>" is text: HTML that strikes through ends with it.
    """
    return token_type in (TokenType.CONTROL, TokenType.USER_DEFINED)


def _amended(types, index, ids, stop_ids):
    """Undoes known mistakes of converters in the types.

    A token that ends or infills a text is never text itself.
    """
    types = types.copy()
    infill = [id for name, id in ids.items() if name.startswith("fim_")]
    types[[*stop_ids, *infill]] = TokenType.CONTROL
    types[[index[text] for text in _VISIBLE_TEXTS if text in index]] = TokenType.USER_DEFINED
    return types
