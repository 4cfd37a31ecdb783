"""Ids in, text out: whatever way the ids are cut, the pieces joined are the text of the whole."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from rocmforge_jax.text import tokenizer_from_metadata

CONTROL, USER_DEFINED = 3, 4


@pytest.fixture(scope="module")
def tokenizers(byte_level, sentence_piece):
    special = {"<|end|>": CONTROL, "<tool>": USER_DEFINED}
    pieces = {"▁": -1.0, "a": -2.0, "▁a": -1.5, "é": -3.0}
    return [
        tokenizer_from_metadata(byte_level(words=["the", "🦙"], special=special)),
        tokenizer_from_metadata(sentence_piece(pieces, special=special)),
    ]


def streamed(tokenizer, chunks, **options):
    stream = tokenizer.stream(**options)
    return [stream.push(chunk) for chunk in chunks] + [stream.flush()]


IDS = st.lists(st.lists(st.integers(0, 2**31), max_size=4), max_size=12)


@settings(deadline=None)
@given(chunks=IDS, which=st.integers(0, 1), skip_special=st.booleans())
def test_pieces_join_to_the_decoded_whole(tokenizers, chunks, which, skip_special):
    tokenizer = tokenizers[which]
    chunks = [[id % tokenizer.vocab_size for id in chunk] for chunk in chunks]
    pieces = streamed(tokenizer, chunks, skip_special=skip_special)
    assert "".join(pieces) == tokenizer.decode(
        [id for chunk in chunks for id in chunk], skip_special=skip_special
    )


@settings(deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")),
    which=st.integers(0, 1),
)
def test_a_text_comes_back_id_by_id_in_whole_characters(tokenizers, text, which):
    """Without "▁", which is SentencePiece's space."""
    tokenizer = tokenizers[which]
    ids = tokenizer.encode(text, parse_special=True)
    pieces = streamed(tokenizer, [[id] for id in ids])
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@pytest.mark.core
@pytest.mark.parametrize(
    "text", ["Hello world", "naïve", "日本語 🦙", "  two spaces ", "\n", "👩‍👩‍👧 é"]
)
@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2"])
def test_every_cut_in_two(reference_tokenizer, name, text):
    tokenizer = reference_tokenizer(name)
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        assert "".join(streamed(tokenizer, [ids[:cut], ids[cut:]])) == text


@pytest.mark.core
def test_half_a_character_waits(tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode("€a")
        stream = tokenizer.stream()
        texts = [stream.push([id]) for id in ids]
        assert [text for text in texts if text] == ["€", "a"]


@pytest.mark.core
def test_a_character_that_never_ends_is_replaced(tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode("€")[:-1]
        assert streamed(tokenizer, [ids]) == ["", "\ufffd"]
        assert tokenizer.decode(ids) == "\ufffd"
        assert tokenizer.decode_bytes(ids) == "€".encode()[:-1]


@pytest.mark.core
def test_bytes_that_are_no_utf8_are_replaced_at_once(tokenizers):
    for tokenizer in tokenizers:
        first, *_, last = tokenizer.encode("€")
        assert "".join(streamed(tokenizer, [[first, first], [last]])) == tokenizer.decode(
            [first, first, last]
        )


@pytest.mark.core
def test_the_first_space_of_sentence_piece_is_dropped_only_at_the_start(tokenizers):
    tokenizer = tokenizers[1]
    a = tokenizer.encode("a")
    assert streamed(tokenizer, [a, a]) == ["a", " a", ""]
    assert streamed(tokenizer, [a], after=a) == [" a", ""]
    end = tokenizer.encode("<|end|>", parse_special=True)
    assert streamed(tokenizer, [a], after=a + end) == ["a", ""]


@pytest.mark.core
def test_special_tokens_can_be_left_out(tokenizers):
    for tokenizer in tokenizers:
        ids = tokenizer.encode("a<|end|>b<tool>", parse_special=True)
        assert "".join(streamed(tokenizer, [ids])) == "a<|end|>b<tool>"
        assert "".join(streamed(tokenizer, [ids], skip_special=True)) == "ab<tool>"


@pytest.mark.core
def test_an_id_outside_the_vocabulary_is_refused(tokenizers):
    for tokenizer in tokenizers:
        with pytest.raises(
            ValueError,
            match=f"token id 999999 is outside the vocabulary of {tokenizer.vocab_size} tokens",
        ):
            tokenizer.stream().push([999999])
        with pytest.raises(ValueError, match="token id -1 is outside"):
            tokenizer.stream(after=[-1])
