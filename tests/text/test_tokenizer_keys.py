"""Every `tokenizer.*` key of a file is used, ignored for a reason, or warned about by name."""

import warnings

import numpy as np
import pytest
from gguf.constants import Keys

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import tokenizer_from_metadata
from tests.text.charsmaps import charsmap

pytestmark = pytest.mark.core

#: Values with which a key that is not read changes nothing.
NEUTRAL = {
    "add_sep_token": False,
    "add_space_prefix": False,
    "remove_extra_whitespaces": False,
    "normalizer.lowercase": False,
    "normalizer.strip_accents": False,
    "token_type_count": 1,
    "suppress_tokens": np.array([2], np.int32),
    "merges": ["a b"],
    "scores": np.zeros(257, np.float32),
    "pre": "default",
}
#: Keys of other kinds of tokenizers, which no value makes harmless.
FOREIGN = {"tokenizer.ggml.precompiled_charsmap", "tokenizer.rwkv.world"}


@pytest.fixture(params=["gpt2", "llama"])
def vocabulary(request, byte_level, sentence_piece):
    if request.param == "gpt2":
        return byte_level(words=["ab"], bos_token_id=1, eos_token_id=2)
    return sentence_piece({"▁": -1.0, "a": -2.0})


def known_keys():
    keys = {value for name, value in vars(Keys.Tokenizer).items() if not name.startswith("_")}
    return sorted(keys - FOREIGN) + ["tokenizer.ggml.cls_token_id"]


@pytest.mark.parametrize("key", known_keys())
def test_known_keys_are_taken_in_silence(vocabulary, key):
    """The keys of the gguf package, which are llama.cpp's."""
    key = key.format(name="tool_use")
    name = key.removeprefix("tokenizer.ggml.")
    value = 5 if name.endswith("_id") else NEUTRAL.get(name, True)
    if not key.startswith("tokenizer.ggml."):
        value = "text"
    tokenizer_from_metadata({key: value} | vocabulary, strict=True)


@pytest.mark.parametrize(
    "key, value",
    [
        ("tokenizer.ggml.remove_extra_whitespaces", True),
        ("tokenizer.ggml.normalizer.lowercase", True),
        ("tokenizer.ggml.normalizer.strip_accents", True),
        ("tokenizer.ggml.token_type_count", 2),
        ("tokenizer.ggml.token_type_count", True),
        ("tokenizer.ggml.precompiled_charsmap", np.zeros(8, np.uint8)),
        ("tokenizer.ggml.separator_token_id", 3),
        ("tokenizer.ggml.a_new_rule", "x"),
        ("tokenizer.rwkv.world", "x"),
    ],
)
def test_unknown_keys_are_named(vocabulary, key, value):
    metadata = vocabulary | {key: value, "tokenizer.ggml.other": 1}
    message = f"not known here: {key}, tokenizer.ggml.other"
    with pytest.warns(UserWarning, match=message) as caught:
        tokenizer = tokenizer_from_metadata(metadata)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    with pytest.raises(GGUFError, match=message):
        tokenizer_from_metadata(metadata, strict=True)


def test_a_space_before_texts_is_sentence_pieces(byte_level, sentence_piece):
    with pytest.warns(UserWarning, match="tokenizer.ggml.add_space_prefix"):
        tokenizer_from_metadata(byte_level(add_space_prefix=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = tokenizer_from_metadata(sentence_piece({"▁": -1.0}, add_space_prefix=True))
    assert tokenizer.add_space_prefix


@pytest.mark.parametrize(
    "model, keys, others",
    [
        (
            "gemma4",
            {"pre": "x", "scores": np.zeros(1), "merges": ["▁ ▁"]},
            {"precompiled_charsmap"},
        ),
        (
            "bert",
            {
                "normalizer.lowercase": False,
                "normalizer.strip_accents": True,
                "token_type_count": 2,
                "pre": "jina-v2-en",
                "add_sep_token": True,
            },
            {"remove_extra_whitespaces", "precompiled_charsmap"},
        ),
        (
            "t5",
            {
                "add_space_prefix": True,
                "remove_extra_whitespaces": True,
                "precompiled_charsmap": charsmap({"a": "b"}),
                "pre": "default",
                "token_type_count": 1,
            },
            {"normalizer.lowercase"},
        ),
    ],
)
def test_each_model_has_keys_of_its_own(request, model, keys, others):
    makers = {"gemma4": "character_bpe", "bert": "word_piece", "t5": "unigram"}
    tokens = {"▁▁": 0.0} if model == "t5" else ["▁▁", "▁"]
    metadata = request.getfixturevalue(makers[model])(tokens, **keys)
    if "scores" in keys:
        metadata["tokenizer.ggml.scores"] = np.zeros(len(metadata["tokenizer.ggml.tokens"]))
    tokenizer_from_metadata(metadata, strict=True)
    for other in others:
        with pytest.raises(GGUFError, match=other):
            tokenizer_from_metadata(metadata | {f"tokenizer.ggml.{other}": True}, strict=True)
