"""Unigram, T5's: the best tokens, spaces, replaced characters. The ids are llama.cpp's."""

import math
import random

import numpy as np
import pytest

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text import tokenizer_from_metadata
from tests.text.charsmaps import charsmap

pytestmark = pytest.mark.core

USER_DEFINED, UNUSED = 4, 5
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
REPLACED = {
    "ﬁ": "fi",
    "\t": " ",
    "e\u0301": "é",
    "e\u0301\u0323": "ẹ́",
    "ａ": "a",
    "\u200b": "",
    "①": "1 ",
    "x<": "y",
    "<\u0338": "≮",
}
PIECES = {
    "▁": -3.0,
    "a": -2.0,
    "b": -2.5,
    "ab": -3.0,
    "▁a": -2.2,
    "fi": -4.0,
    "é": -3.5,
    "▁▁": -2.0,
    "1": -4.0,
    "bab": -6.9,
    "y": -5.0,
    "f": -5.0,
    "i": -5.0,
}


@pytest.fixture(scope="module")
def load(unigram):
    """A function: keys -> the tokenizer of PIECES, a user-defined <t> and a table of REPLACED."""

    def tokenizer(**keys):
        keys.setdefault("precompiled_charsmap", charsmap(REPLACED))
        return tokenizer_from_metadata(unigram(PIECES, {"<t>": USER_DEFINED}, **keys))

    return tokenizer


@pytest.mark.parametrize(
    "text, plain, prefixed, merged",
    [
        ("ab", [6], [7, 5], [7, 5]),
        ("abab a", [6, 6, 7], [7, 5, 6, 7], [7, 5, 6, 7]),
        ("ﬁ ab", [8, 7, 5], [3, 8, 7, 5], [3, 8, 7, 5]),
        ("e\u0301", [9], [3, 9], [3, 9]),
        ("e\u0301\u0323", [2], [3, 2], [3, 2]),  # the longest text that the table has
        ("e\u0301a\u0301", [9, 4, 2], [3, 9, 4, 2], [3, 9, 4, 2]),
        ("xx<a", [2, 13, 4], [3, 2, 13, 4], [3, 2, 13, 4]),
        ("  a  b", [10, 4, 10, 5], [10, 7, 10, 5], [7, 3, 5]),
        ("a\tb ", [4, 3, 5, 3], [7, 3, 5, 3], [7, 3, 5]),
        ("①a", [11, 7], [3, 11, 7], [3, 11, 7]),
        ("zz a", [2, 7], [3, 2, 7], [3, 2, 7]),  # a run of unknown characters is one token
        ("", [], [], []),
        ("   ", [3, 10], [3, 10], []),
        ("a\u200bb", [6], [7, 5], [7, 5]),
        ("ａ\0ａ", [4, 2, 4], [7, 2, 4], [7, 2, 4]),
        ("<\u0338", [2], [3, 2], [3, 2]),
        ("a<t>b", [4, 16, 5], [7, 16, 3, 5], [7, 16, 3, 5]),
        ("<unk>a", [2, 4], [2, 7], [2, 7]),
        ("</s>", [1], [1], [1]),
    ],
)
def test_ids(load, text, plain, prefixed, merged):
    def ids(**keys):
        return load(**keys).encode(text, parse_special=True)

    assert ids() == plain
    assert ids(add_space_prefix=True) == prefixed
    assert ids(remove_extra_whitespaces=True) == merged
    assert ids(remove_extra_whitespaces=True, add_space_prefix=True) == merged


def test_texts_end_with_eos(load):
    tokenizer = load()
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep) == (False, True, False)
    assert tokenizer.encode("ab", add_special=True) == [6, 1]
    assert tokenizer.encode("", add_special=True) == [1]
    assert load(add_eos_token=False).encode("ab", add_special=True) == [6]
    tokenizer = load(add_bos_token=True, bos_token_id=0)
    assert tokenizer.encode("ab", add_special=True) == [0, 6, 1]


def test_unused_tokens_are_read_and_say_nothing(unigram):
    pieces = PIECES | {"c": -9.0}
    special = {"[P]": UNUSED, "d": UNUSED}
    metadata = unigram(pieces, special, add_space_prefix=True)
    tokenizer = tokenizer_from_metadata(metadata)
    assert [tokenizer.encode(text) for text in ("[P]", "dab")] == [[3, 17], [3, 18, 6]]
    assert tokenizer.decode([3, 18, 6]) == "ab"
    metadata["tokenizer.ggml.scores"][17] = -10000.0  # as converters write it
    assert tokenizer_from_metadata(metadata).encode("[P]") == [3, 2]


def test_a_text_comes_back(load):
    tokenizer = load(add_space_prefix=True)
    assert tokenizer.decode(tokenizer.encode("ab  a é<t>b")) == "ab  a é<t>b"
    stream = tokenizer.stream()
    assert "".join(stream.push([id]) for id in tokenizer.encode(" a ab")) == " a ab"


def best(text, scores, unknown):
    """The greatest sum of scores, by the definition."""
    sums = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            piece = text[start:end]
            if piece in scores:
                sums[end] = max(sums[end], sums[start] + scores[piece])
        if text[end - 1] not in scores:
            sums[end] = max(sums[end], sums[end - 1] + unknown)
    return sums[-1]


def test_random_vocabularies_find_the_greatest_sum(unigram):
    rng = random.Random(11)
    for _ in range(20):
        texts = {"".join(rng.choices("▁abcé", k=rng.randrange(1, 5))) for _ in range(20)}
        pieces = {text: -rng.uniform(1, 12) for text in sorted(texts)}
        metadata = unigram(pieces)
        tokenizer = tokenizer_from_metadata(metadata)
        scores = metadata["tokenizer.ggml.scores"].astype(float)
        index = {text: scores[id] for id, text in enumerate(metadata["tokenizer.ggml.tokens"])}
        known = {text: index[text] for text in pieces}
        least = min(known.values())
        for _ in range(10):
            text = "".join(rng.choices("▁abcé", k=rng.randrange(1, 12)))
            ids = tokenizer.encode(text)
            spelled = [tokenizer.piece(id).decode().replace(" ", "▁") for id in ids]
            unknown = len(text) - sum(len(piece) for piece in spelled if piece in known)
            found = sum(known.get(piece, 0.0) for piece in spelled) + unknown * (least - 10)
            assert found == pytest.approx(best(text, known, least - 10), rel=1e-6)


@pytest.mark.parametrize("data", [b"", b"\1\0", b"\4\0\0\0", b"\4\0\0\0\0\0\0\0", b"\xff" * 20])
def test_a_table_that_does_not_fit(unigram, data):
    metadata = unigram(PIECES) | {CHARSMAP: np.frombuffer(data, np.uint8)}
    with pytest.raises(GGUFError, match=f"precompiled_charsmap has {len(data)} bytes"):
        tokenizer_from_metadata(metadata)


def test_a_table_of_another_type(unigram):
    with pytest.raises(GGUFError, match="precompiled_charsmap is an array of int32, .*8-bit"):
        tokenizer_from_metadata(unigram(PIECES, precompiled_charsmap=np.zeros(9, np.int32)))


def test_a_replacement_outside_the_table(load):
    data = charsmap({"a": "bcdef", "b": "x"})[:-7]
    tokenizer = load(precompiled_charsmap=data)
    with pytest.raises(GGUFError, match="no replacement at 6 of 1 bytes"):
        tokenizer.encode("ab")


def test_any_table_is_read_or_refused(load):
    """Trees with circles and offsets outside end."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        nodes = rng.integers(0, 2**32, 64, np.uint64).astype("<u4")
        nodes[rng.random(64) < 0.7] &= 0x00FFF1FF
        data = np.frombuffer(b"\0\1\0\0" + nodes.tobytes() + b"abc\0", np.uint8)
        try:
            load(precompiled_charsmap=data).encode("abc\x01\x02 éa" * 3)
        except GGUFError as error:
            assert "no replacement at" in str(error)


def test_characters_are_left_out_without_an_unknown_token(unigram):
    metadata = unigram({})
    for key, entries in (("tokens", ["<pad>", "a"]), ("token_type", [3, 1]), ("scores", [0.0, -1])):
        metadata[f"tokenizer.ggml.{key}"] = entries
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.encode("aa", strict=True) == [1, 1]
    with pytest.warns(UserWarning, match="no token for 'bc', 'd' of the text"):
        assert tokenizer.encode("abcad") == [1, 1]


def test_a_missing_list_of_scores(unigram):
    metadata = unigram(PIECES)
    del metadata["tokenizer.ggml.scores"]
    with pytest.warns(UserWarning, match="no tokenizer.ggml.scores"):
        tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("abab")) == "abab"
