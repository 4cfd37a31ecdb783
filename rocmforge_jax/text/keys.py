"""Reports which `tokenizer.*` keys of a file are not used, and why.

The keys are those of llama.cpp (src/llama-arch.cpp) and of the gguf package.
"""

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import metadata as meta
from rocmforge_jax.text.special_ids import ID_KEYS

_GGML = "tokenizer.ggml."
_USED = {
    "model",
    "tokens",
    "token_type",
    "add_bos_token",
    "add_eos_token",
    "suppress_tokens",
    *(key for keys in ID_KEYS.values() for key in keys),
}
#: Tokenizer model -> the keys that it uses in addition.
_USED_BY = {
    "gpt2": {"pre", "merges"},
    "gemma4": {"merges"},
    "llama": {"scores", "add_space_prefix"},
    "bert": {"normalizer.lowercase", "normalizer.strip_accents", "cls_token_id", "add_sep_token"},
    "t5": {"scores", "add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap"},
}
_BY_RANK = "merges are in their order"
_ONE_PRE_TOKENIZER = "this model has one way to split words"
#: Tokenizer model -> keys without effect -> the reason.
_DESCRIPTIVE = {
    "gpt2": {"scores": _BY_RANK},
    "gemma4": {"scores": _BY_RANK, "pre": _ONE_PRE_TOKENIZER},
    "llama": {
        "pre": _ONE_PRE_TOKENIZER,
        "merges": "SentencePiece merges by score",
    },
    "bert": {
        "pre": _ONE_PRE_TOKENIZER,
        "scores": "the longest tokens are taken",
        "merges": "nothing is merged",
        "token_type_count": "it counts the kinds of segments, not of tokens",
    },
    "t5": {
        "pre": _ONE_PRE_TOKENIZER,
        "merges": "nothing is merged",
        "token_type_count": "it counts the kinds of segments, not of tokens",
    },
}
_ALWAYS_DESCRIPTIVE = {
    "add_sep_token": "texts are not encoded in pairs",
    "cls_token_id": "only encoders begin a text with it",
}
#: Keys without effect if they have one of these values. With another value they are unknown.
_NEUTRAL_VALUES = {
    "add_space_prefix": (False,),
    "remove_extra_whitespaces": (False,),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
    "token_type_count": (0, 1),
}
#: Keys outside of tokenizer.ggml -> the reason why the tokenizer does not read them.
_ELSEWHERE = {
    "tokenizer.chat_template": "chat templates",
    "tokenizer.chat_templates": "chat templates",
    "tokenizer.huggingface.json": "the keys of tokenizer.ggml hold the same",
}


def unused_keys(metadata, model: str) -> dict[str, str]:
    """Returns the unused `tokenizer.*` keys, each with the reason, or "unknown".

    Args:
        metadata: The file's key-value pairs.
        model: The value of `tokenizer.ggml.model`.
    """
    used = _USED | _USED_BY[model]
    return {
        key: _reason(key, value, model)
        for key, value in metadata.items()
        if key.startswith("tokenizer.") and key.removeprefix(_GGML) not in used
    }


def report_unknown_keys(metadata, model: str, strict: bool) -> None:
    """Warns about unknown keys, or raises GGUFError if `strict` is set."""
    unknown = [key for key, why in unused_keys(metadata, model).items() if why == "unknown"]
    if not unknown:
        return
    message = f"keys of the tokenizer that are not known here: {', '.join(unknown)}"
    if strict:
        raise GGUFError(message)
    meta.warn(message)


def _reason(key: str, value, model: str) -> str:
    if key in _ELSEWHERE or key.startswith("tokenizer.chat_template."):
        return _ELSEWHERE.get(key, "chat templates")
    if not key.startswith(_GGML):
        return "unknown"
    name = key.removeprefix(_GGML)
    if reason := (_DESCRIPTIVE[model] | _ALWAYS_DESCRIPTIVE).get(name):
        return reason
    neutral = _NEUTRAL_VALUES.get(name, ())
    same = any(type(value) is type(one) and value == one for one in neutral)
    return f"{value} changes nothing" if same else "unknown"
