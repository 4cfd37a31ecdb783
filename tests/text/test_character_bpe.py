"""BPE on characters, Gemma 4's: merges, newlines, bytes. The ids are llama.cpp's."""

import pytest

from rocmforge_jax.text import load_tokenizer, tokenizer_from_metadata

pytestmark = pytest.mark.core

TOKENS = ["▁", "a", "b", "ab", "▁ab", "\n", "\n\n\n", "▁▁", "é"]
MERGES = ["a b", "▁ ab", "▁ ▁"]


@pytest.fixture(scope="module")
def metadata(character_bpe):
    return character_bpe(TOKENS, MERGES)


@pytest.mark.parametrize(
    "text, ids",
    [
        ("\n", [265]),
        ("\n\n", [265, 265]),
        ("a\n\n\nb", [261, 266, 262]),  # a run of newlines is taken whole, without merges
        ("\n\n\n\n", [265] * 4),
        ("ab  ab", [263, 260, 264]),
        ("ab\u20ac\u00e9", [263, 230, 134, 176, 268]),
        ("▁ab ab", [264, 264]),
        ("\t\n ab", [13, 265, 264]),
        (" a", [260, 261]),
        ("", []),
    ],
)
def test_ids(metadata, text, ids):
    assert tokenizer_from_metadata(metadata).encode(text, strict=True) == ids


def test_sarvam_takes_no_newlines_whole(metadata):
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "sarvam-moe"}
    tokenizer = tokenizer_from_metadata(metadata | keys)
    assert tokenizer.encode("a\n\n\nb ab", add_special=True) == [261, 265, 265, 265, 262, 264]


def test_white_space_is_cut_off_from_words(character_bpe):
    metadata = character_bpe(["a", "b", "ab", " "], ["a b"], model="gpt2", pre="whitespace")
    assert tokenizer_from_metadata(metadata).encode("ab a\nb") == [262, 263, 260, 14, 261]


@pytest.mark.parametrize("pre", ["gemma4", "granite-embed-multi-311m"])
def test_texts_begin_with_bos_whatever_the_file_says(metadata, pre):
    metadata = metadata | {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre}
    assert tokenizer_from_metadata(metadata).encode("ab", add_special=True) == [2, 263]
    with pytest.warns(UserWarning, match="add_bos_token is False"):
        tokenizer = tokenizer_from_metadata(metadata | {"tokenizer.ggml.add_bos_token": False})
    assert tokenizer.encode("ab", add_special=True) == [2, 263]


def test_bytes_without_tokens_are_left_out(metadata):
    tokens = list(metadata["tokenizer.ggml.tokens"])
    types = metadata["tokenizer.ggml.token_type"].copy()
    tokens[4 + 0x82], types[4 + 0x82] = "[gone]", 1
    tokenizer = tokenizer_from_metadata(
        metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    )
    with pytest.warns(UserWarning, match="no token for byte 0x82 of the text"):
        assert tokenizer.encode("a€b") == [261, 230, 176, 262]
    with pytest.raises(ValueError, match="byte 0x82"):
        tokenizer.encode("a€b", strict=True)


def test_merges_of_what_is_no_token(character_bpe):
    with pytest.warns(UserWarning, match="2 of 3 merges .* the first is 'a é'"):
        tokenizer = tokenizer_from_metadata(
            character_bpe(["a", "b", "aéb", "bb"], ["a é", "aé b", "b b"])
        )
    pieces = [tokenizer.piece(id).decode() for id in tokenizer.encode("aébb")]
    assert pieces == ["aéb", "b"]
    assert tokenizer.decode(tokenizer.encode("aébéaé")) == "aébéaé"


def test_the_text_comes_back(metadata):
    tokenizer = tokenizer_from_metadata(metadata)
    text = "  ab\n\n\nab \u00e9\t日本 👍\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join([*(stream.push([id]) for id in ids), stream.flush()]) == text
    assert tokenizer.piece(264) == b" ab"


@pytest.mark.parametrize("name", ["gemma4.Q4_K_M", "gemma4-e.Q4_0", "gemma4-moe.Q4_K_M"])
@pytest.mark.parametrize(
    "text, ids",
    [
        ("Hello world", "2 480 310 424 420 290 279 424 425"),
        ("<bos>\tx=1;\r\n  y", "2 510 453 456 442 464 26 10 12 434"),
        ("café 語👍", "2 427 418 432 208 182 415 245 183 171 253 172 158 154"),
        ("12 dogs.\n\n", "2 442 450 288 420 431 423 433 11"),
    ],
)
def test_ids_of_the_reference_files(reference, name, text, ids):
    tokenizer = load_tokenizer(reference / "families" / f"{name}.gguf")
    found = tokenizer.encode(text, add_special=True, parse_special=True)
    assert found == [int(id) for id in ids.split()]
