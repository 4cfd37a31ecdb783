"""Finds the tokens with a role: those that start, end or infill a text.

The keys follow the GGUF specification. The tokens that end a generation follow llama.cpp
(src/llama-vocab.cpp).
"""

import numpy as np

from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.token_types import TokenType

# name -> the keys that may hold its id; the later ones are older spellings.
ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),  # sic, in the specification
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}

#: Tokenizer model -> default special ids. For gpt2 llama.cpp uses Falcon's id, 11. There is no
#: default here, because 11 is a comma in other vocabularies.
DEFAULT_IDS = {
    "gpt2": {},
    "gemma4": {},
    "llama": {"unk": 0, "bos": 1, "eos": 2},
    "bert": {"pad": 0, "unk": 100, "bos": 101, "sep": 102, "mask": 103},
    "t5": {"pad": 0, "eos": 1, "unk": 2},
}

# name -> the texts that identify a token if no key specifies it. The first text in the vocabulary
# is used.
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

# Parts of a message that gpt-oss generates and that must stay visible to the caller.
_VISIBLE_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


def special_ids(metadata, index, vocab_size: int) -> dict[str, int]:
    """Returns the special ids by name, from the file's keys or else from the tokens' texts."""
    ids = {}
    for name, keys in ID_KEYS.items():
        given = [_named(metadata, f"tokenizer.ggml.{key}", vocab_size) for key in keys]
        given += [index.get(text) for text in _ID_TEXTS.get(name, ())]
        found = [id for id in given if id is not None]
        if found:
            ids[name] = found[0]
    return ids


def _named(metadata, key: str, vocab_size: int) -> int | None:
    id = meta.token_id(metadata, key, vocab_size)
    if id is None and metadata.get(key) is not None:
        meta.warn(
            f"{key} is {metadata[key]}, outside the vocabulary of {vocab_size} tokens: it is"
            " ignored"
        )
    return id


def endings(tokens, index, types, ids, given) -> tuple[frozenset[int], np.ndarray]:
    """Returns the tokens that end a generation, and the corrected token types.

    Some converters store wrong types. A token that ends or infills a text becomes a control token,
    unless it is only the default for its role.

    Args:
        tokens: The vocabulary.
        index: Text -> id.
        types: The type of each token.
        ids: Name -> id, including defaults.
        given: Name -> id, only from keys or texts.
    """
    stops = {ids[name] for name in _STOP_NAMES if name in ids}
    stops |= {
        index[text]
        for text in _STOP_TEXTS
        if text in index and (text != "</s>" or _is_marked(types[index[text]]))
    }
    types = types.copy()
    infill = {id for name, id in given.items() if name.startswith("fim_")}
    recognised = {id for id in stops if id in given.values() or tokens[id] in _STOP_TEXTS}
    types[[*infill, *recognised]] = TokenType.CONTROL
    types[[index[text] for text in _VISIBLE_TEXTS if text in index]] = TokenType.USER_DEFINED
    for text, token_type in _parts_of_messages({tokens[id] for id in stops}).items():
        stops.discard(index[text])
        types[index[text]] = token_type
    return frozenset(stops), types


def _parts_of_messages(stops: set[str]) -> dict[str, TokenType]:
    """Returns the texts that do not end a generation if certain other stop tokens exist.

    Each text has its type. Harmony (gpt-oss) and Solar end a message, not the answer, with <|end|>.
    In Gemma 4 and PLaMo </s> is ordinary text.
    """
    found = {}
    if stops & {"<|call|>", "<|calls|>"} and stops & {"<|return|>", "<|flush|>"}:
        found["<|end|>"] = TokenType.USER_DEFINED
    if stops & {"<|tool_response>", "<|plamo:eos|>"}:
        found["</s>"] = TokenType.NORMAL
    return {text: token_type for text, token_type in found.items() if text in stops}


def _is_marked(token_type) -> bool:
    """Returns whether the file declares a token as control or user-defined.

    Qwen's "</s>" is plain text: it closes a struck-through passage in HTML.
    """
    return token_type in (TokenType.CONTROL, TokenType.USER_DEFINED)
