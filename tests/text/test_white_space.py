"""White space that special tokens take, by the names of models as in llama.cpp."""

import pytest

from rocmforge_jax.text import tokenizer_from_metadata

pytestmark = pytest.mark.core

CONTROL, USER_DEFINED = 3, 4
SPECIAL = {
    "</s>": CONTROL,
    "<unk>": 2,
    "<|end|>": CONTROL,
    "<|endoftext|>": CONTROL,
    "<tool>": USER_DEFINED,
    "<mask>": CONTROL,
    "[MASK]": CONTROL,
}


@pytest.fixture
def read(byte_level):
    """A function: (text, metadata) -> its tokens with control tokens read, joined by "|"."""

    def pieces(text, pre="gpt-2", parse_special=True, **general):
        metadata = byte_level(special=SPECIAL, pre=pre)
        metadata |= {f"general.{key}": value for key, value in general.items()}
        tokenizer = tokenizer_from_metadata(metadata)
        ids = tokenizer.encode(text, parse_special=parse_special)
        return "|".join(tokenizer.piece(id).decode() for id in ids)

    return pieces


@pytest.mark.parametrize("name", ["Phi-3 mini", "phi3", "a PHI-3.5 tuned"])
@pytest.mark.parametrize(
    "text, pieces",
    [
        ("a <|end|> \n\t b <|end|>", "a| |<|end|>|b| |<|end|>"),
        ("<|end|>  <|end|> </s>\v\f\rb", "<|end|>|<|end|>|</s>|b"),
        ("<tool> a<unk> b", "<tool>|a|<unk>| |b"),
        ("<|endoftext|> a", "<|endoftext|>| |a"),
        ("<|end|>", "<|end|>"),
        ("<|end|> ", "<|end|>"),
        ("<|end|>\x1c a", "<|end|>|\x1c| |a"),  # white space in Python, not in C
    ],
)
def test_phi_3_takes_it_after_its_tokens(read, name, text, pieces):
    assert read(text, name=name) == pieces


@pytest.mark.parametrize("name", ["Phi 3", "phi-2", "", None, 3])
def test_other_models_keep_it(read, name):
    general = {} if name is None else {"name": name}
    assert read("<|end|> a<mask>", **general) == "<|end|>| |a|<mask>"


def test_user_defined_tokens_take_it_in_plain_text_too(read):
    assert read("<tool> a", name="phi-3", parse_special=False) == "<tool>|a"


@pytest.mark.parametrize(
    "keys, token",
    [
        ({"pre": "jina-v2-de"}, "<mask>"),
        ({"pre": "jina-v2-es"}, "<mask>"),
        ({"pre": "jina-v2-code", "name": "phi-3"}, "<mask>"),
        ({"architecture": "nomic-bert-moe"}, "<mask>"),
        ({"architecture": "jina-bert-v3"}, "<mask>"),
        ({"name": "My modern-BERT"}, "[MASK]"),
    ],
)
def test_others_take_it_before_their_mask(read, keys, token):
    other = "[MASK]" if token == "<mask>" else "<mask>"
    assert read(f"a \n{token} a {other} {token}", **keys) == (f"a|{token}| |a| |{other}|{token}")


def test_many_special_tokens_are_quick(read):
    assert read("<|end|> " * 50_000, name="phi-3") == "|".join(["<|end|>"] * 50_000)
