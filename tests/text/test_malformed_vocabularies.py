"""What is wrong with a vocabulary is a GGUFError, which is a ValueError, with both numbers."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import tokenizer_from_metadata

pytestmark = pytest.mark.core

TOKENS, TYPES, SCORES, MERGES = (
    f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "scores", "merges")
)


def refused(metadata, message):
    with pytest.raises(GGUFError, match=message):
        tokenizer_from_metadata(metadata)


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_a_missing_key(byte_level, key):
    metadata = byte_level()
    del metadata[f"tokenizer.ggml.{key}"]
    refused(metadata, f"the file has no tokenizer.ggml.{key}")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model", 3, r"tokenizer.ggml.model is 3: expected a string"),
        ("model", b"\xff", r"tokenizer.ggml.model is bytes that are not UTF-8: expected a string"),
        ("pre", True, r"tokenizer.ggml.pre is True: expected a string"),
        ("tokens", "abc", r"tokenizer.ggml.tokens is a string: expected a list of strings"),
        (
            "tokens",
            np.arange(3),
            r"tokenizer.ggml.tokens is an array of int64, shape \[3\]: expected a list of strings",
        ),
        ("tokens", 7, r"tokenizer.ggml.tokens is 7: expected a list of strings"),
        ("tokens", ["a", 5], r"tokenizer.ggml.tokens\[1\] is 5: expected a string"),
        ("tokens", [], r"tokenizer.ggml.tokens is empty"),
        (
            "merges",
            np.zeros(2, np.float32),
            (
                r"tokenizer.ggml.merges is an array of float32, shape \[2\]: expected a list of"
                r" strings"
            ),
        ),
        ("merges", ["a b", None], r"tokenizer.ggml.merges\[1\] is None: expected a string"),
        (
            "token_type",
            "no",
            r"tokenizer.ggml.token_type is a string: expected a list of 256 integers",
        ),
        (
            "token_type",
            np.zeros(256, np.float32),
            r"token_type is an array of float32, shape \[256\]: expected a list of 256 integers",
        ),
        (
            "token_type",
            np.ones(255, np.int32),
            r"tokenizer.ggml.token_type has 255 entries for 256 tokens",
        ),
        (
            "token_type",
            np.ones(257, np.int32),
            r"tokenizer.ggml.token_type has 257 entries for 256 tokens",
        ),
        (
            "scores",
            np.zeros(255, np.float32),
            r"tokenizer.ggml.scores has 255 entries for 256 tokens",
        ),
        (
            "scores",
            ["x"] * 256,
            r"tokenizer.ggml.scores is a list of 256: expected a list of 256 numbers",
        ),
        ("bos_token_id", "1", r"tokenizer.ggml.bos_token_id is '1' \(str\): expected an integer"),
        (
            "bos_token_id",
            True,
            r"tokenizer.ggml.bos_token_id is True \(bool\): expected an integer",
        ),
        ("bos_token_id", 1.0, r"tokenizer.ggml.bos_token_id is 1.0 \(float\): expected an integer"),
        (
            "eos_token_id",
            256,
            r"tokenizer.ggml.eos_token_id is 256, outside the vocabulary of 256 tokens",
        ),
        (
            "padding_token_id",
            2**32 - 1,
            r"tokenizer.ggml.padding_token_id is 4294967295, outside the vocabulary of 256 tokens",
        ),
        (
            "eot_token_id",
            -1,
            r"tokenizer.ggml.eot_token_id is -1, outside the vocabulary of 256 tokens",
        ),
        ("add_bos_token", 1, r"tokenizer.ggml.add_bos_token is 1: expected a boolean"),
        ("add_eos_token", "yes", r"tokenizer.ggml.add_eos_token is a string: expected a boolean"),
    ],
)
def test_a_value_of_the_wrong_type_or_size(byte_level, key, value, message):
    refused(byte_level() | {f"tokenizer.ggml.{key}": value}, message)


@pytest.mark.parametrize("token_type", [-1, 7, 2**31 - 1, 2**32 + 1])
def test_a_token_type_that_there_is_not(byte_level, token_type):
    metadata = byte_level()
    metadata[TYPES] = metadata[TYPES].astype(np.int64)
    metadata[TYPES][5] = token_type
    refused(metadata, rf"tokenizer.ggml.token_type\[5\] is {token_type}: types are 0 to 6")


@pytest.mark.parametrize("text", ["<0x100>", "<0xG0>", "<0x0>", "0x00", "<0x-1>", "a", b"\xff"])
def test_a_byte_token_that_is_no_byte(sentence_piece, text):
    metadata = sentence_piece({"b": 0.0})
    metadata[TOKENS][10] = text
    refused(metadata, "token 10 is of type byte and reads .*: byte tokens read <0x00> to <0xFF>")


@pytest.mark.parametrize("token", ["b", b"\xff\xfe"])
def test_a_token_that_is_there_twice(byte_level, token):
    metadata = byte_level(special={"x1": 1, "x2": 1})
    metadata[TOKENS][3] = metadata[TOKENS][257] = token
    first = metadata[TOKENS].index(token)
    refused(metadata, rf"the token .* is twice in the vocabulary, as id {first} and id \d+")


def test_scores_may_be_of_any_number_type(sentence_piece):
    metadata = sentence_piece({"▁": -1.0, "a": -2.0})
    ids = tokenizer_from_metadata(metadata).encode("a a")
    for scores in (
        metadata[SCORES].astype(np.int32),
        metadata[SCORES].astype(np.float64) * 1e300,
        metadata[SCORES].tolist(),
    ):
        assert tokenizer_from_metadata(metadata | {SCORES: scores}).encode("a a") == ids


def test_a_score_that_is_no_number(sentence_piece):
    metadata = sentence_piece({"a": 0.0, "b": float("nan")})
    refused(metadata, r"tokenizer.ggml.scores\[260\] is not a number")


def test_a_vocabulary_to_merge_by_score_without_scores(sentence_piece):
    metadata = sentence_piece({"a": 0.0})
    del metadata[SCORES]
    refused(metadata, "the file has no tokenizer.ggml.scores")


def test_a_piece_that_is_too_long(sentence_piece):
    tokenizer_from_metadata(sentence_piece({"a" * 512: 0.0}))
    refused(
        sentence_piece({"b": 0.0, "a" * 513: 0.0}),
        "token 260 has 513 characters, a piece has at most 512",
    )


@pytest.mark.parametrize("unknown", ["", b"\xff"])
def test_no_way_to_write_some_texts(sentence_piece, unknown):
    metadata = sentence_piece({"a": 0.0})
    metadata[TOKENS][0], metadata[TOKENS][7] = unknown, "gone"
    metadata[TYPES][7] = 1
    refused(metadata, "neither an unknown token nor all 256 byte tokens")


@pytest.mark.parametrize(
    "merge, message",
    [
        (
            "ab",
            (
                "merge 1 of tokenizer.ggml.merges is 'ab': expected two tokens with one space"
                " between them"
            ),
        ),
        (
            "a b c",
            (
                "merge 1 of tokenizer.ggml.merges is 'a b c': expected two tokens with one space"
                " between them"
            ),
        ),
        ("", "merge 1 of tokenizer.ggml.merges is '': expected two tokens"),
        (b"a \xff", "merge 1 of tokenizer.ggml.merges is b'a .xff': expected two tokens"),
        (" b", "merge 1 of tokenizer.ggml.merges is ' b', but '' is not in the vocabulary"),
        ("a ", "merge 1 of tokenizer.ggml.merges is 'a ', but '' is not in the vocabulary"),
        ("a €", "merge 1 of tokenizer.ggml.merges is 'a €', but '€' is not in the vocabulary"),
        ("a c", "merge 1 of tokenizer.ggml.merges is 'a c', but 'ac' is not in the vocabulary"),
    ],
)
def test_a_merge_that_is_none(byte_level, merge, message):
    metadata = byte_level(words=["ab"])
    refused(metadata | {MERGES: [*metadata[MERGES], merge, "a b"]}, message)


def test_a_repeated_merge_keeps_its_first_rank(byte_level):
    metadata = byte_level(words=["ab", "bc"])
    metadata[MERGES] = ["a b", "b c", "a b"]
    assert len(tokenizer_from_metadata(metadata).encode("abc")) == 2
    assert (
        tokenizer_from_metadata(metadata).decode(
            tokenizer_from_metadata(metadata).encode("abc")[:1]
        )
        == "ab"
    )


def test_tokens_that_are_not_utf8_stay_bytes(byte_level, sentence_piece):
    for metadata in (byte_level(special={"x": 1}), sentence_piece({"a": 0.0, "x": 0.0})):
        metadata[TOKENS][-1] = b"\xe2\x82"
        tokenizer = tokenizer_from_metadata(metadata)
        assert tokenizer.piece(tokenizer.vocab_size - 1) == b"\xe2\x82"
        assert tokenizer.decode([tokenizer.vocab_size - 1]) == "\ufffd"


def test_tokens_may_be_empty(byte_level):
    metadata = byte_level(special={"x": 1, "y": 1})
    metadata[TOKENS][-2:] = ["", ""]
    assert tokenizer_from_metadata(metadata).piece(257) == b""


def test_a_text_with_a_byte_that_has_no_token_is_refused(byte_level):
    metadata = byte_level()
    metadata[TOKENS][ord("!")] = "[gone]"
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    with pytest.raises(ValueError, match="no token for the byte 0x21 of the text"):
        tokenizer.encode("a!")


@pytest.mark.parametrize("text", [b"a", None, 5, ["a"]])
def test_a_text_that_is_none(byte_level, text):
    with pytest.raises(TypeError, match=f"a text is a str, got {type(text).__name__}"):
        tokenizer_from_metadata(byte_level()).encode(text)


def test_a_token_that_is_no_byte_text_stands_for_itself(byte_level):
    tokenizer = tokenizer_from_metadata(byte_level(special={"日本": 1}))
    assert tokenizer.piece(256) == "日本".encode()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.text(max_size=3), max_size=4),
    st.lists(st.integers(-9, 300), max_size=4),
)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), text=st.text(max_size=8))
def test_any_change_is_refused_or_harmless(byte_level, sentence_piece, data, text):
    """Values of other types, and lists with one entry changed."""
    metadata = data.draw(
        st.sampled_from(
            [
                byte_level(words=["ab", "the"]),
                sentence_piece({"▁": -1.0, "ab": -2.0, "a": -3.0, "b": -3.0}),
            ]
        )
    )
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        value = metadata[key]
        if isinstance(value, list) and value and data.draw(st.booleans()):
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(
                st.text(max_size=4) | st.binary(max_size=3) | st.just("a b")
            )
        elif isinstance(value, np.ndarray) and data.draw(st.booleans()):
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(-1, 7))
        else:
            metadata[key] = data.draw(VALUES)
    try:
        tokenizer = tokenizer_from_metadata(metadata)
    except GGUFError:
        return
    try:
        ids = tokenizer.encode(text, add_special=True, parse_special=True)
    except ValueError as error:
        assert "no token for the byte" in str(error)
        return
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert isinstance(tokenizer.decode(ids), str)
