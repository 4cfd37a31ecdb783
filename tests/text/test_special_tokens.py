"""Tokens that are no text: which are read from a text, which are added to it, which end a
generation.
"""

import numpy as np
import pytest

from rocmforge_jax.text import tokenizer_from_metadata

pytestmark = pytest.mark.core

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
A, B = ord("a"), ord("b")


@pytest.fixture
def chat(byte_level):
    """256 bytes, then <s> 256, <|im_end|> 257, and the user-defined <tool> 258."""
    special = {"<s>": CONTROL, "<|im_end|>": CONTROL, "<tool>": USER_DEFINED}
    return byte_level(special=special, bos_token_id=256, eos_token_id=257)


def ids_of(tokenizer, text):
    """The ids of a text without words or special tokens: one a byte."""
    return [tokenizer.encode(char)[0] for char in text]


def test_control_tokens_are_read_only_when_asked_for(chat):
    tokenizer = tokenizer_from_metadata(chat)
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert tokenizer.encode("a<|im_end|>b", parse_special=True) == [a, 257, b]
    assert tokenizer.encode("a<|im_end|>b") == ids_of(tokenizer, "a<|im_end|>b")


def test_user_defined_tokens_are_always_read(chat):
    tokenizer = tokenizer_from_metadata(chat)
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert (
        tokenizer.encode("a<tool>b")
        == tokenizer.encode("a<tool>b", parse_special=True)
        == [a, 258, b]
    )
    assert tokenizer.encode("<tool><tool>") == [258, 258]


def test_the_longest_special_token_wins_wherever_it_is(byte_level):
    """llama.cpp reads "bcd" in "abcd" and leaves "a", although "abc" begins earlier."""
    tokenizer = tokenizer_from_metadata(
        byte_level(special={"bcd.": USER_DEFINED, "abc": USER_DEFINED})
    )
    assert tokenizer.encode("abcd.") == [*tokenizer.encode("a"), 256]
    assert tokenizer.encode("abcd") == [257, *tokenizer.encode("d")]


def test_add_special_follows_the_keys(chat):
    def ends(**keys):
        tokenizer = tokenizer_from_metadata(
            chat | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        )
        ids = tokenizer.encode("a", add_special=True)
        place = ids.index(tokenizer.encode("a")[0])
        return ids[:place], ids[place + 1 :]

    assert ends() == ([], [])
    assert ends(add_bos_token=True) == ([256], [])
    assert ends(add_eos_token=True) == ([], [257])
    assert ends(add_bos_token=True, add_eos_token=True) == ([256], [257])
    assert ends(pre="llama-bpe") == ([256], [])
    assert ends(pre="llama-bpe", add_bos_token=False) == ([], [])


def test_a_sentence_piece_vocabulary_adds_bos_unless_told_otherwise(sentence_piece):
    assert tokenizer_from_metadata(sentence_piece({"▁": 0.0})).encode("", add_special=True) == [1]
    assert (
        tokenizer_from_metadata(sentence_piece({"▁": 0.0}, add_bos_token=False)).encode(
            "", add_special=True
        )
        == []
    )


def test_bos_and_eos_are_not_doubled(chat):
    tokenizer = tokenizer_from_metadata(
        chat | {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    )
    (a,) = tokenizer.encode("a")
    assert tokenizer.encode("<s>a<|im_end|>", add_special=True, parse_special=True) == [256, a, 257]
    assert tokenizer.encode("<s>a<|im_end|>", add_special=True)[0] == 256
    assert tokenizer.encode("<s>a<|im_end|>", add_special=True)[1] != 256


def test_plain_text_is_no_bos(byte_level):
    """A vocabulary may name a token that a text can hold, as Falcon's. llama.cpp adds it too."""
    tokenizer = tokenizer_from_metadata(byte_level(bos_token_id=97, add_bos_token=True))
    (a,) = tokenizer.encode("a")
    assert a == tokenizer.bos_id
    assert tokenizer.encode("ab", add_special=True) == [a, a, *tokenizer.encode("b")]


def test_nothing_is_added_unless_asked_for(chat):
    tokenizer = tokenizer_from_metadata(chat | {"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.add_bos
    assert 256 not in tokenizer.encode("a")


def test_ids_that_a_file_does_not_name_are_none(byte_level):
    tokenizer = tokenizer_from_metadata(byte_level())
    names = "bos eos eot eom unk sep pad mask fim_pre fim_suf fim_mid".split()
    assert [getattr(tokenizer, f"{name}_id") for name in names] == [None] * len(names)
    assert tokenizer.stop_ids == frozenset()


def test_ids_that_a_file_names(byte_level):
    keys = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "eot_token_id": 3,
        "eom_token_id": 4,
        "unknown_token_id": 5,
        "seperator_token_id": 6,
        "padding_token_id": 7,
        "mask_token_id": 8,
        "fim_pre_token_id": 9,
        "suffix_token_id": 10,
        "middle_token_id": 11,
    }
    tokenizer = tokenizer_from_metadata(byte_level(**keys))
    names = "bos eos eot eom unk sep pad mask fim_pre fim_suf fim_mid".split()
    assert [getattr(tokenizer, f"{name}_id") for name in names] == list(range(1, 12))
    assert tokenizer.stop_ids == {2, 3, 4}


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>",
        "<|eot_id|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<|end|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "[EOS]",
        "<EOT>",
        "<eos>",
    ],
)
@pytest.mark.parametrize("token_type", [NORMAL, CONTROL, USER_DEFINED])
def test_well_known_tokens_end_a_generation(byte_level, text, token_type):
    """Whatever type the converter gave them; they then count as control tokens."""
    tokenizer = tokenizer_from_metadata(byte_level(special={text: token_type}))
    assert tokenizer.stop_ids == {256}
    assert tokenizer.encode(text, parse_special=True) == [256]
    assert tokenizer.encode(text) == ids_of(tokenizer, text)
    assert tokenizer.decode([256], skip_special=True) == ""


def test_an_ordinary_token_that_reads_like_eos_is_text(byte_level):
    """Qwen2 has "</s>" among its words."""
    assert tokenizer_from_metadata(byte_level(words=["</s>"])).stop_ids == frozenset()
    assert tokenizer_from_metadata(byte_level(special={"</s>": CONTROL})).stop_ids == {256}


@pytest.mark.parametrize(
    "texts, stops",
    [
        (["<|end|>", "<|return|>", "<|call|>"], ["<|return|>", "<|call|>"]),
        (["<|end|>", "<|flush|>", "<|calls|>"], ["<|flush|>", "<|calls|>"]),
        (["<|end|>", "<|call|>"], ["<|end|>", "<|call|>"]),
        (["</s>", "<|tool_response>"], ["<|tool_response>"]),
        (
            ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"],
            ["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        ),
    ],
)
def test_families_with_rules_of_their_own(byte_level, texts, stops):
    tokenizer = tokenizer_from_metadata(byte_level(special=dict.fromkeys(texts, CONTROL)))
    assert [tokenizer.piece(id).decode() for id in sorted(tokenizer.stop_ids)] == stops


def test_skip_special_leaves_out_control_tokens_only(chat):
    tokenizer = tokenizer_from_metadata(chat)
    ids = tokenizer.encode("<s>a<tool>b<|im_end|>", parse_special=True)
    assert tokenizer.decode(ids) == "<s>a<tool>b<|im_end|>"
    assert tokenizer.decode(ids, skip_special=True) == "a<tool>b"


def test_parts_of_a_harmony_message_stay_visible(byte_level):
    tokenizer = tokenizer_from_metadata(byte_level(special={"<|channel|>": CONTROL}))
    assert tokenizer.decode([256], skip_special=True) == "<|channel|>"


def test_the_end_of_a_harmony_message_stays_visible(byte_level):
    """Where "<|end|>" ends the answer, it is not part of it."""
    texts = dict.fromkeys(["<|end|>", "<|return|>", "<|call|>"], CONTROL)
    tokenizer = tokenizer_from_metadata(byte_level(special=texts))
    assert tokenizer.decode([256, 257], skip_special=True) == "<|end|>"
    tokenizer = tokenizer_from_metadata(byte_level(special={"<|end|>": CONTROL}))
    assert tokenizer.decode([256], skip_special=True) == ""


@pytest.mark.parametrize("marker", ["<|tool_response>", "<|plamo:eos|>"])
def test_eos_of_other_models_is_text_in_gemma_4_and_plamo(byte_level, marker):
    metadata = byte_level(special={"</s>": CONTROL, marker: CONTROL}, eos_token_id=257)
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.stop_ids == {257}
    assert tokenizer.decode([256], skip_special=True) == "</s>"
    assert tokenizer.encode("</s>", parse_special=True) == ids_of(tokenizer, "</s>")


def test_a_default_role_leaves_an_ordinary_token_text(sentence_piece):
    """Id 2 is eos where no key says so, whatever the token is."""
    metadata = sentence_piece({"▁": -1.0, "b": -2.0, "▁b": -1.0})
    metadata["tokenizer.ggml.tokens"][2] = "a"
    metadata["tokenizer.ggml.token_type"][2] = NORMAL
    tokenizer = tokenizer_from_metadata(metadata)
    assert tokenizer.stop_ids == {2}
    assert tokenizer.encode("ba")[-1] == 2
    assert tokenizer.decode([2], skip_special=True) == "a"


def test_unused_tokens_have_no_text(byte_level):
    metadata = byte_level(special={"[PAD256]": UNUSED})
    assert tokenizer_from_metadata(metadata).piece(256) == b""


def test_an_empty_text_has_no_ids(chat):
    tokenizer = tokenizer_from_metadata(chat)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_ids_may_be_numpy_integers(chat):
    tokenizer = tokenizer_from_metadata(chat)
    for dtype in (np.int8, np.uint8, np.int32, np.uint64):
        ids = np.array(tokenizer.encode("ab"), dtype)
        assert tokenizer.decode(ids) == tokenizer.decode(list(ids)) == "ab"
        assert tokenizer.decode_bytes(iter(ids)) == b"ab"
        assert tokenizer.stream(after=ids).push(ids) == "ab"
        assert tokenizer.piece(ids[0]) == tokenizer.piece(np.array(ids[0])) == b"a"
        assert not tokenizer.is_control(ids[0]) and not tokenizer.is_special(np.array(ids[1]))


@pytest.mark.parametrize("id", [-1, 259, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(chat, id):
    tokenizer = tokenizer_from_metadata(chat)
    for use in (
        tokenizer.piece,
        tokenizer.is_control,
        tokenizer.is_special,
        lambda id: tokenizer.decode([id]),
    ):
        with pytest.raises(
            ValueError, match=f"token id {id} is outside the vocabulary of 259 tokens"
        ):
            use(id)


def test_an_id_that_is_not_an_integer_is_refused(chat):
    tokenizer = tokenizer_from_metadata(chat)
    for id in (1.0, np.float32(1), "1", np.array([1, 2])):
        with pytest.raises(TypeError, match="token id is an integer, got"):
            tokenizer.decode([id])


def test_a_lone_surrogate_is_refused(chat):
    with pytest.raises(ValueError, match=r"the text .*U\+D800 at character 1,"):
        tokenizer_from_metadata(chat).encode("a\ud800")


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_a_token_to_add_that_does_not_exist_is_not_added(byte_level, kind):
    metadata = byte_level(**{f"add_{kind}_token": True})
    with pytest.warns(UserWarning, match=f"the file has no tokenizer.ggml.{kind}_token_id"):
        tokenizer = tokenizer_from_metadata(metadata)
    assert not tokenizer.add_bos and not tokenizer.add_eos
    assert len(tokenizer.encode("a", add_special=True)) == 1
