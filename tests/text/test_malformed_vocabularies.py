"""What cannot be right in a vocabulary is a GGUFError, which is a ValueError, with both numbers.

What is odd, and loads in llama.cpp, is a warning.
"""

import re
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import tokenizer_from_metadata
from tests.text.charsmaps import charsmap

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
    refused(metadata, f"the file has no .*tokenizer.ggml.{key}")


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
        ("add_bos_token", 1, r"tokenizer.ggml.add_bos_token is 1: expected a boolean"),
        ("add_eos_token", "yes", r"tokenizer.ggml.add_eos_token is a string: expected a boolean"),
    ],
)
def test_a_value_of_the_wrong_type_or_size(byte_level, key, value, message):
    refused(byte_level() | {f"tokenizer.ggml.{key}": value}, message)


def loads_with(metadata, message):
    """The tokenizer of metadata that one warning names as odd."""
    with pytest.warns(UserWarning, match=message) as caught:
        tokenizer = tokenizer_from_metadata(metadata)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return tokenizer


@pytest.mark.parametrize(
    "key, value, longer",
    [("token_type", np.ones(259, np.int32), 259), ("scores", np.zeros(257, np.float32), 257)],
)
def test_a_list_that_is_longer_than_the_vocabulary(byte_level, key, value, longer):
    tokenizer = loads_with(
        byte_level(**{key: value}), f"tokenizer.ggml.{key} has {longer} entries for 256 tokens"
    )
    assert tokenizer.decode(tokenizer.encode("aé")) == "aé"


@pytest.mark.parametrize("id", [256, 2**32 - 1, -1, np.int64(-2)])
@pytest.mark.parametrize(
    "key", ["bos", "eos", "eot", "padding", "seperator", "mask", "unknown", "fim_pad", "prefix"]
)
def test_a_special_id_outside_the_vocabulary_is_none(byte_level, key, id):
    tokenizer = loads_with(
        byte_level(**{f"{key}_token_id": id}),
        f"tokenizer.ggml.{key}_token_id is {id}, outside the vocabulary of 256 tokens",
    )
    assert tokenizer.stop_ids == frozenset()
    assert {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.fim_pre_id} == {None}


def test_a_special_id_outside_the_vocabulary_leaves_the_default(sentence_piece):
    metadata = sentence_piece({"▁a": 0.0}, bos_token_id=2**32 - 1)
    assert loads_with(metadata, "bos_token_id is 4294967295").bos_id == 1


def test_an_older_key_counts_where_the_newer_one_is_outside(byte_level):
    metadata = byte_level(fim_pre_token_id=999, prefix_token_id=7)
    assert loads_with(metadata, "fim_pre_token_id is 999").fim_pre_id == 7


@pytest.mark.parametrize("token_type", [-1, 7, 2**31 - 1, 2**32 + 1])
def test_a_token_type_that_there_is_not(byte_level, token_type):
    metadata = byte_level()
    metadata[TYPES] = metadata[TYPES].astype(np.int64)
    metadata[TYPES][5] = token_type
    tokenizer = loads_with(metadata, rf"token_type\[5\] is {token_type}: .* 0 to 6")
    assert tokenizer.piece(5) == b"" and tokenizer.piece(6) != b""


@pytest.mark.parametrize("text", ["<0x100>", "<0xG0>", "<0x0>", "0x00", "<0x-1>", "a", b"\xff"])
def test_a_byte_token_that_is_no_byte_is_text(sentence_piece, text):
    metadata = sentence_piece({"b": 0.0})
    metadata[TOKENS][10] = text
    tokenizer = loads_with(metadata, "token 10 of type byte reads .*: .* <0x00> to <0xFF>")
    assert tokenizer.piece(10) == (text if isinstance(text, bytes) else text.encode())


def test_a_byte_token_in_small_letters(sentence_piece):
    metadata = sentence_piece({"b": 0.0})
    metadata[TOKENS][3 + 0xAF] = "<0xaf>"
    assert tokenizer_from_metadata(metadata).piece(3 + 0xAF) == b"\xaf"


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
    """The leftmost pair merges first, as where all scores are equal."""
    metadata = sentence_piece({"▁": 0.0, "a": 0.0, "b": 0.0, "ab": 5.0, "▁a": 1.0})
    del metadata[SCORES]
    tokenizer = loads_with(metadata, "no tokenizer.ggml.scores")
    assert [tokenizer.piece(id) for id in tokenizer.encode("ab")] == [b" a", b"b"]


def test_a_piece_may_be_long(sentence_piece):
    piece = "ab" * 300
    scores = {"▁": -9.0, "a": -9.0, "b": -9.0} | {"ab" * n: float(n) for n in range(1, 301)}
    tokenizer = tokenizer_from_metadata(sentence_piece(scores, add_space_prefix=False))
    ids = tokenizer.encode(f"{piece}b {piece}")
    assert [tokenizer.piece(id).decode() for id in ids] == [piece, "b", " ", piece]


@pytest.mark.parametrize("unknown", ["", b"\xff"])
def test_characters_that_have_no_ids_are_left_out(sentence_piece, unknown):
    metadata = sentence_piece({"▁": 0.0, "a": 0.0})
    metadata[TOKENS][0], metadata[TOKENS][3 + 0xA9] = unknown, "gone"
    metadata[TYPES][3 + 0xA9] = 1
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("aèa", strict=True)) == "aèa"
    with pytest.warns(UserWarning, match="no token for '©', 'é' of the text") as caught:
        ids = tokenizer.encode("a©é éa")
    assert len(caught) == 1
    assert tokenizer.decode(ids) == "a a"
    with pytest.raises(ValueError, match="no token for 'é' of the text"):
        tokenizer.encode("aé", strict=True)


@pytest.mark.parametrize(
    "merge", ["ab", "a b c", "", b"a \xff", " b", "a ", "a €", "€ a", "a c", " a b"]
)
def test_a_merge_that_never_applies(byte_level, merge):
    metadata = byte_level(words=["ab"])
    merges = [*metadata[MERGES], merge, "a b", merge, "x y"]
    tokenizer = loads_with(
        metadata | {MERGES: merges}, f"2 of 3 merges .* the first is {re.escape(repr(merge))}"
    )
    assert tokenizer.encode("abac") == tokenizer_from_metadata(metadata).encode("abac")


@pytest.mark.parametrize(
    "gone, text, pieces",
    [
        ("ab", "abcab", "abc|a|b"),  # the merge happens all the same, and is undone at the end
        ("ab", "cabd", "c|a|b|d"),
        ("a", "abcb", "abc|b"),
        ("abc", "abcd", "a|b|c|d"),
    ],
)
def test_merges_work_on_text(byte_level, gone, text, pieces):
    """Whether or not their parts are tokens; the pieces are llama.cpp's."""
    metadata = byte_level(words=["abc"])
    metadata[TOKENS][metadata[TOKENS].index(gone)] = "[gone]"
    tokenizer = loads_with(metadata, "[12] of 2 merges")
    ids = tokenizer.encode(text, strict=True)
    assert "|".join(tokenizer.piece(id).decode() for id in ids) == pieces


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


def test_a_byte_without_a_token_is_left_out(byte_level):
    """As in llama.cpp its neighbours do not merge."""
    metadata = byte_level(words=["aa"])
    metadata[TOKENS][metadata[TOKENS].index("!")] = "[gone]"
    metadata[TOKENS][metadata[TOKENS].index("Ā")] = "[zero]"  # the byte 0x00
    tokenizer = tokenizer_from_metadata(metadata)
    a, two = metadata[TOKENS].index("a"), metadata[TOKENS].index("aa")
    assert tokenizer.encode("aa", strict=True) == [two]
    with pytest.warns(UserWarning, match="no token for byte 0x00, byte 0x21 of the text") as caught:
        assert tokenizer.encode("a!a\0aa!") == [a, a, two]
    assert len(caught) == 1 and caught[0].filename == __file__
    with pytest.raises(ValueError, match="no token for byte 0x21 of the text"):
        tokenizer.encode("a!", strict=True)


def test_many_lacking_bytes_are_counted(byte_level):
    metadata = byte_level()
    for byte, char in enumerate("ĀāĂăĄąĆć"):  # the bytes 0x00 to 0x07
        metadata[TOKENS][metadata[TOKENS].index(char)] = f"[{byte}]"
    with pytest.warns(UserWarning, match="byte 0x04 and 3 more of the text"):
        assert tokenizer_from_metadata(metadata).encode("\0\1\2\3\4\5\6\7") == []


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
def test_any_change_is_refused_or_harmless(
    byte_level, sentence_piece, character_bpe, word_piece, unigram, data, text
):
    """Values of other types, and lists with one entry changed."""
    metadata = data.draw(
        st.sampled_from(
            [
                byte_level(words=["ab", "the"]),
                sentence_piece({"▁": -1.0, "ab": -2.0, "a": -3.0, "b": -3.0}),
                character_bpe(["a", "b", "ab", "\n\n"], ["a b"]),
                word_piece(["▁a", "b", "▁ab"]),
                unigram(
                    {"▁": -1.0, "ab": -2.0, "a": -3.0},
                    precompiled_charsmap=charsmap({"ａ": "a", "a\u0301": "á"}),
                ),
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
            lowest = np.iinfo(value.dtype).min if value.dtype.kind in "iu" else -1
            entry = data.draw(st.integers(max(lowest, -1), 7))
            value[data.draw(st.integers(0, len(value) - 1))] = entry
        else:
            metadata[key] = data.draw(VALUES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            tokenizer = tokenizer_from_metadata(metadata)
        except GGUFError:
            return
        try:
            ids = tokenizer.encode(text, add_special=True, parse_special=True)
        except GGUFError as error:  # of tables that are read piece by piece
            assert "charsmap has no replacement" in str(error)
            return
    assert all(0 <= id < tokenizer.vocab_size for id in ids)
    assert isinstance(tokenizer.decode(ids), str)
