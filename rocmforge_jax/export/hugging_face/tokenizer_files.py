"""The tokenizer of a file as the files that transformers reads."""

import json
from typing import Any

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.language_model import LanguageModel
from rocmforge_jax.text.metadata import warn
from rocmforge_jax.text.tokenizer_json import tokenizer_json

#: What transformers calls the tokens that a vocabulary may have.
_TOKENS = ("bos", "eos", "unk", "pad")


def tokenizer_files(lm: LanguageModel, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the files of a tokenizer by their names, as JSON values.

    The ids of special tokens go into `settings`, which is config.json. A tokenizer that cannot be
    said is warned about.
    """
    ids = {name: getattr(lm.tokenizer, f"{name}_id") for name in _TOKENS}
    for name, id in ids.items():
        if id is not None and name != "unk":
            settings[f"{name}_token_id"] = id
    try:
        made = tokenizer_json(lm.metadata)
    except (ValueError, GGUFError) as error:
        warn(f"no tokenizer.json is written: {error}")
        return {}
    named: dict[str, Any] = {
        f"{name}_token": made.id_to_token(id) for name, id in ids.items() if id is not None
    }
    named |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": lm.model.config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    template = lm.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        named["chat_template"] = template
    return {"tokenizer.json": json.loads(made.to_str()), "tokenizer_config.json": named}
