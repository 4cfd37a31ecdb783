"""SentencePiece BPE: merges, bytes, spaces; against llama.cpp's algorithm written out."""

import heapq

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rocmforge_jax.gguf import open_gguf
from rocmforge_jax.text import tokenizer_from_metadata

UNK = 0
PIECES = {
    "▁": -1e9,
    "a": -3.0,
    "b": -4.0,
    "ab": -1.0,
    "▁a": -2.0,
    "abab": -0.5,
    "▁▁": -1e9,
    "▁▁▁": -1e9,
    "é": -5.0,
}


def merge_by_score(text, score):
    """The pair with the best score merges first, the leftmost of equals: O(n log n), one symbol a
    character at the start.
    """
    symbols, after, before = (
        list(text),
        list(range(1, len(text) + 1)),
        list(range(-1, len(text) - 1)),
    )
    queue = []

    def offer(left, right):
        if (
            left >= 0
            and right < len(symbols)
            and (merged := symbols[left] + symbols[right]) in score
        ):
            heapq.heappush(queue, (-score[merged], left, right, merged))

    for i in range(len(text) - 1):
        offer(i, i + 1)
    while queue:
        _, left, right, merged = heapq.heappop(queue)
        if (
            symbols[left]
            and symbols[right]
            and after[left] == right
            and symbols[left] + symbols[right] == merged
        ):
            symbols[left], symbols[right] = merged, ""
            after[left] = after[right]
            if after[right] < len(symbols):
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
    return [symbol for symbol in symbols if symbol]


def llama_cpp_encoder(metadata):
    """A function: text without special tokens -> ids."""
    tokens, scores, types = (
        metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")
    )
    index = {token: id for id, token in enumerate(tokens)}
    score = {token: float(scores[id]) for id, token in enumerate(tokens) if types[id] == 1}

    def ids_of(symbol):
        return (
            [index[symbol]]
            if symbol in score
            else [index[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        )

    def encode(text):
        symbols = merge_by_score("▁" + text.replace(" ", "▁"), score) if text else []
        return [id for symbol in symbols for id in ids_of(symbol)]

    return encode


def words(tokenizer, text):
    return [tokenizer.piece(id).decode("latin-1") for id in tokenizer.encode(text)]


@pytest.mark.core
@pytest.mark.parametrize(
    "text, pieces",
    [
        ("ab", [" ", "ab"]),  # " a" scores less than "ab", which takes its "a"
        ("bab", [" ", "b", "ab"]),
        ("ababab", [" ", "abab", "ab"]),
        ("  a", ["  ", " a"]),
        ("b", [" ", "b"]),
    ],
)
def test_the_best_score_merges_first(sentence_piece, text, pieces):
    assert words(tokenizer_from_metadata(sentence_piece(PIECES)), text) == pieces


EQUAL = dict.fromkeys("▁ a b c ab bc ca abc cab aa ▁a".split(), -1.0)


@pytest.mark.core
@pytest.mark.parametrize(
    "text, pieces",
    [
        ("abc", "abc"),
        ("bcab", "bc|ab"),
        ("cabca", "cab|ca"),
        ("aabca", "aa|bc|a"),
        ("abcabcabc", "abc|abc|abc"),
        ("bca aab", "bc|a| a|ab"),
    ],
)
def test_the_leftmost_of_equal_scores_merges_first(sentence_piece, text, pieces):
    """The pieces are llama.cpp's."""
    tokenizer = tokenizer_from_metadata(sentence_piece(EQUAL, add_space_prefix=False))
    assert words(tokenizer, text) == pieces.split("|")


@pytest.mark.core
def test_few_scores_for_many_pieces(sentence_piece):
    """The ids are llama.cpp's."""
    scores = {"▁": 0, "a": 0, "b": 0, "c": 0, "▁a": -2, "ca": -1, "a▁": -1, "ba": -2, "ab": -2}
    scores |= {"aba": -1, "▁ba": -1, "aa": -2, "▁c▁": -1, "cbb": -2}
    tokenizer = tokenizer_from_metadata(sentence_piece(scores, add_space_prefix=False))
    text = "bac c caa bcb  aaccc  aac aac c ca cba abcbb   ab  cb c c bb"
    ids = [266, 262, 259, 262, 259, 264, 265, 261, 262, 261, 259, 263, 260, 262, 262, 262, 259]
    ids += [263, 260, 262, 263, 260, 262, 259, 262, 259, 264, 259, 262, 261, 265, 267, 262, 261]
    ids += [261, 259, 259, 263, 261, 259, 259, 262, 261, 259, 262, 259, 262, 259, 261, 261]
    assert tokenizer.encode(text) == ids


@pytest.mark.core
@pytest.mark.parametrize(
    "text, ids",
    [
        ("ab", [260]),
        ("ba", [261]),
        ("aba", [262]),
        ("bb", [101, 101]),
        ("abab", [262, 101]),
        ("babb", [101, 260, 101]),
    ],
)
def test_a_character_may_merge_without_being_a_token(sentence_piece, text, ids):
    """The ids are llama.cpp's; "b" alone is its byte, id 101."""
    scores = {"a": -1.0, "ab": -2.0, "ba": -3.0, "aba": -1.0}
    tokenizer = tokenizer_from_metadata(sentence_piece(scores, add_space_prefix=False))
    assert tokenizer.encode(text) == ids


@settings(deadline=None)
@given(data=st.data(), text=st.text(alphabet="abc é", max_size=60))
def test_equal_scores_follow_the_algorithm(sentence_piece, data, text):
    """Few pieces are looked for in the text one by one, many are not."""
    piece = st.text(alphabet="abc▁", min_size=2, max_size=5)
    count = data.draw(st.sampled_from([3, 10, 200]))
    pieces = data.draw(st.sets(piece, min_size=count, max_size=count))
    levels = data.draw(st.sampled_from([1, 2, 40]))
    scores = {
        text: float(-data.draw(st.integers(1, levels))) for text in sorted(pieces | set("abc▁"))
    }
    metadata = sentence_piece(scores)
    assert tokenizer_from_metadata(metadata).encode(text) == llama_cpp_encoder(metadata)(text)


@pytest.mark.core
def test_characters_without_a_token_become_bytes(sentence_piece):
    tokenizer = tokenizer_from_metadata(sentence_piece(PIECES))
    first_byte = 3
    assert tokenizer.encode("a€")[-3:] == [first_byte + byte for byte in "€".encode()]
    assert tokenizer.decode(tokenizer.encode("a€\0")) == "a€\0"


@pytest.mark.core
def test_without_byte_tokens_a_run_of_unknown_characters_is_one_unknown_token():
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    assert tokenizer_from_metadata(metadata).encode("axyza") == [3, 4, UNK, 4]


@pytest.mark.core
def test_a_space_comes_before_each_text_and_goes_again(sentence_piece):
    tokenizer = tokenizer_from_metadata(sentence_piece(PIECES))
    assert tokenizer.encode("a") == tokenizer.encode("a</s>a", parse_special=True)[:1]
    assert words(tokenizer, "a") == [" a"]
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    assert tokenizer.decode(tokenizer.encode("a</s>a", parse_special=True)) == "a</s>a"


@pytest.mark.core
def test_the_space_can_be_turned_off(sentence_piece):
    tokenizer = tokenizer_from_metadata(sentence_piece(PIECES, add_space_prefix=False))
    assert words(tokenizer, "a") == ["a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


@pytest.mark.core
def test_control_tokens_are_never_merged_from_text(sentence_piece):
    """Not even where the vocabulary has all their parts."""
    tokenizer = tokenizer_from_metadata(
        sentence_piece(PIECES | {"<": -6.0, "s": -6.0, ">": -6.0, "<s": -6.0})
    )
    assert 1 not in tokenizer.encode("<s>")
    assert tokenizer.decode(tokenizer.encode("<s>")) == "<s>"


@pytest.mark.core
def test_the_default_special_ids(sentence_piece):
    tokenizer = tokenizer_from_metadata(sentence_piece(PIECES))
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
        0,
        1,
        2,
        None,
    )
    assert tokenizer.add_bos and tokenizer.stop_ids == {2}


@settings(deadline=None)
@given(text=st.text(alphabet="ab é", max_size=40))
def test_ids_are_those_of_the_algorithm(sentence_piece, text):
    metadata = sentence_piece(PIECES)
    assert tokenizer_from_metadata(metadata).encode(text) == llama_cpp_encoder(metadata)(text)


@pytest.fixture(scope="module")
def llama(reference):
    return llama_cpp_encoder(
        open_gguf(reference / "tokenizers" / "ggml-vocab-llama-spm.gguf").metadata
    )


@pytest.mark.parametrize("character", " -=*#/.\n\t0a한")
def test_runs_of_one_character_in_llamas_vocabulary(llama, reference_tokenizer, character):
    """All runs of spaces have one score there, so the leftmost merges first."""
    for length in [*range(1, 40), 100]:
        assert reference_tokenizer("llama-spm").encode(character * length) == llama(
            character * length
        )


WORDS = st.sampled_from(
    "the| the|  |\n|naïve|don't|1234|Größe|日本語|🦙|foo_bar|    return|<s>|</s>|▁".split("|")
)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(WORDS | st.text(max_size=5), max_size=12).map("".join))
def test_ids_are_those_of_the_algorithm_in_llamas_vocabulary(llama, reference_tokenizer, text):
    assert reference_tokenizer("llama-spm").encode(text) == llama(text)
