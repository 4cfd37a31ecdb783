"""WordPiece, BERT's: words, longest tokens, the ends of texts. The ids are llama.cpp's."""

import random
import warnings

import pytest

from rocmforge_jax.text import load_tokenizer, tokenizer_from_metadata

pytestmark = pytest.mark.core

TOKENS = (
    "▁un able ▁a ffo aff rd ▁ e ▁, ▁日 ▁本 ▁straße ▁strasse ▁İ ▁i i ▁É ▁e ▁ᄀ [X] ▁` ▁€ €"
).split()


@pytest.mark.parametrize(
    "text, ids",
    [
        ("unable", [5, 6]),
        ("UnAble a", [5, 6, 7]),
        ("unaffordable", [1]),  # the longest token first, "aff", leaves "o", so all is unknown
        ("éI", [22, 20]),
        ("한가", [1]),
        ("가", [23]),  # only the first character of a decomposition stays
        ("日本 a,日", [14, 15, 7, 13, 14]),
        ("a\0\ufffd\u200bffo", [7, 8]),
        ("a\x85unable\u3000a\u2028e", [7, 5, 6, 7, 22]),
        ("e\x1ce", [22, 12]),  # white space for Python only
        ("a` ` €€", [7, 25, 25, 26, 27]),  # a symbol is a word of its own in ASCII only
        ("", []),
        ("  ", []),
        ("\u0301", []),
        ("İ", [19]),
        ("straße STRASSE", [16, 17]),
        ("a[X]", [7, 1, 1, 1]),
        ("[SEP] a", [3, 7]),
        ("▁a", [11, 7]),
        ("unx un", [1, 5]),
    ],
)
def test_ids(word_piece, text, ids):
    assert tokenizer_from_metadata(word_piece(TOKENS)).encode(text, parse_special=True) == ids


@pytest.mark.parametrize(
    "keys, text, ids",
    [
        ({"normalizer.lowercase": False}, "UnAble a", [1, 7]),
        ({"normalizer.lowercase": False}, "É é", [21, 1]),
        ({"normalizer.lowercase": False}, "\u0301 İ", [1, 18]),
        ({"normalizer.lowercase": False, "normalizer.strip_accents": True}, "É", [1]),
        ({"normalizer.strip_accents": False}, "É STRASSE", [1, 17]),
        ({"normalizer.strip_accents": False}, "\u0301", [1]),
    ],
)
def test_case_and_accents(word_piece, keys, text, ids):
    assert tokenizer_from_metadata(word_piece(TOKENS, **keys)).encode(text) == ids


def test_ends_of_texts(word_piece):
    tokenizer = tokenizer_from_metadata(word_piece(TOKENS))
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep) == (True, False, True)
    assert tokenizer.encode("a", add_special=True) == [2, 7, 3]
    assert tokenizer.encode("", add_special=True) == [2, 3]
    assert tokenizer.encode("[CLS]a[SEP]", add_special=True, parse_special=True) == [2, 7, 3]


@pytest.mark.parametrize("name", ["bos", "sep"])
def test_ends_are_there_whatever_the_file_says(word_piece, name):
    with pytest.warns(UserWarning, match=f"add_{name}_token is False"):
        tokenizer = tokenizer_from_metadata(word_piece(TOKENS, **{f"add_{name}_token": False}))
    assert tokenizer.encode("a", add_special=True) == [2, 7, 3]


def test_eos_is_not_added_where_sep_is(word_piece):
    tokenizer = tokenizer_from_metadata(word_piece(TOKENS, add_eos_token=True, eos_token_id=4))
    assert (tokenizer.eos_id, tokenizer.add_eos) == (4, False)
    assert tokenizer.encode("a", add_special=True) == [2, 7, 3]


def test_other_models_add_no_sep(byte_level, unigram):
    keys = {"add_sep_token": True, "seperator_token_id": 5}
    assert tokenizer_from_metadata(byte_level(**keys)).encode("", add_special=True) == []
    metadata = unigram({"a": -1.0, "b": -1.0, "c": -1.0}, **keys)
    assert tokenizer_from_metadata(metadata).encode("a", add_special=True) == [3, 1]


def test_ids_that_a_file_may_leave_out(word_piece):
    metadata = word_piece([f"▁{n}" for n in range(99)])
    for key in ("unknown_token_id", "bos_token_id", "seperator_token_id"):
        del metadata[f"tokenizer.ggml.{key}"]
    tokenizer = tokenizer_from_metadata(metadata)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (0, 103)
    assert tokenizer.encode("x 5", add_special=True) == [101, 100, 10, 102]


def test_another_cls_token_is_said(word_piece):
    metadata = word_piece([f"▁{n}" for n in range(99)], cls_token_id=2)
    tokenizer_from_metadata(metadata)
    del metadata["tokenizer.ggml.bos_token_id"]
    with pytest.warns(UserWarning, match="begin with token 101, .*cls_token_id is 2"):
        assert tokenizer_from_metadata(metadata).encode("5", add_special=True) == [101, 10, 3]


def test_a_sep_that_does_not_exist(word_piece):
    metadata = word_piece(TOKENS)
    del metadata["tokenizer.ggml.seperator_token_id"]  # 102 is outside
    with pytest.warns(UserWarning, match="no tokenizer.ggml.seperator_token_id"):
        assert tokenizer_from_metadata(metadata).encode("a", add_special=True) == [2, 7]


def test_words_without_an_unknown_token_are_left_out(word_piece):
    metadata = word_piece(["▁a"])
    del metadata["tokenizer.ggml.unknown_token_id"]
    with pytest.warns(UserWarning, match="no token for 'ab', 'c' of the text"):
        assert tokenizer_from_metadata(metadata).encode("ab a c") == [5]


def test_a_text_comes_back_as_its_words(word_piece):
    tokenizer = tokenizer_from_metadata(word_piece(TOKENS))
    ids = tokenizer.encode("[CLS] UNABLE  a", parse_special=True)
    assert tokenizer.decode(ids) == "[CLS] unable a"
    stream = tokenizer.stream(skip_special=True)
    assert "".join(stream.push([id]) for id in ids) == " unable a"


def longest_first(word, tokens, unknown):
    """The definition, in the square of the word's length."""
    ids, start = [], 0
    while start < len(word):
        ends = [end for end in range(len(word), start, -1) if word[start:end] in tokens]
        if not ends:
            return [unknown]
        ids.append(tokens[word[start : ends[0]]])
        start = ends[0]
    return ids


def test_random_vocabularies(word_piece):
    rng = random.Random(5)
    for _ in range(20):
        tokens = {"".join(rng.choices("▁abcé", k=rng.randrange(1, 5))) for _ in range(25)}
        metadata = word_piece(sorted(tokens), **{"normalizer.strip_accents": False})
        tokenizer = tokenizer_from_metadata(metadata)
        index = {token: id for id, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        for _ in range(20):
            words = ["".join(rng.choices("abcé", k=rng.randrange(1, 9))) for _ in range(4)]
            want = [id for word in words for id in longest_first(f"▁{word}", index, 1)]
            assert tokenizer.encode(" ".join(words)) == want


@pytest.mark.parametrize("name", ["bert.Q8_0", "nomic-bert.Q8_0"])
@pytest.mark.parametrize(
    "text, ids",
    [
        ("Hello world", "101 50 446 454 454 449 65 449 451 454 450 3"),
        ("naïve café Größe 日本語 👍", "101 56 445 447 472 446 45 445 467 446 1 1 1 1 1 3"),
        ("Привет, мир!", "101 1 16 1 5 3"),
    ],
)
def test_ids_of_the_reference_files(reference, name, text, ids):
    with warnings.catch_warnings():  # of cls_token_id, which is 2
        warnings.simplefilter("ignore", UserWarning)
        tokenizer = load_tokenizer(reference / "families" / f"{name}.gguf")
    assert tokenizer.encode(text, add_special=True) == [int(id) for id in ids.split()]
