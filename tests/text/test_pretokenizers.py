"""Where each pre-tokenizer cuts a text into words, by hand from the expressions of the models' own
tokenizer.json.

The words are made visible by a vocabulary in which every part of the text is a token and every two
neighbours merge: each word then is exactly one token.
"""

import pytest

from rocmforge_jax.gguf import write_gguf
from rocmforge_jax.text import load_tokenizer, tokenizer_from_metadata

TEXT = "I'LL pay 12345 €, OK?\n\n  isMixed(a)\t中文。"

# names -> the words of TEXT, joined by "|"
WORDS = {
    "default": "I|'|LL| pay| |123|45| €|,| OK|?|\n\n | isMixed|(|a|)|\t|中文|。",
    """gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat mellum modern-bert exaone4
    a.x-4.0 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe""": (
        "I|'|LL| pay| 12345| €,| OK|?|\n\n | isMixed|(|a|)|\t|中文|。"
    ),
    """starcoder refact command-r smollm codeshell exaone minerva-7b mellum2""": (
        "I|'|LL| pay| |1|2|3|4|5| €,| OK|?|\n\n | isMixed|(|a|)|\t|中文|。"
    ),
    "falcon": "I|'|LL| pay| |123|45| €|,| OK|?|\n\n | isMixed|(|a|)|\t|中文|。",
    """llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe
    glm4 glm5 chatglm-bpe minicpm5 jais-2""": (
        "I|'LL| pay| |123|45| €,| OK|?\n\n| | isMixed|(a|)|\t中文|。"
    ),
    """qwen2 qwen35 stablelm2 hunyuan solar-open grok-2 megrez deepseek-r1-qwen kormo f2llmv2
    ufakzeka bailingmoe bailingmoe2 llada-moe""": (
        "I|'LL| pay| |1|2|3|4|5| €,| OK|?\n\n| | isMixed|(a|)|\t中文|。"
    ),
    "seed-coder laguna": "I|'LL| pay| |1|2|3|4|5| €,| OK|?|\n\n| | isMixed|(a|)|\t中文|。",
    "exaone-moe": "I|'LL| pay| |1|2|3|4|5| €,| OK|?\n|\n| | isMixed|(a|)|\t中文|。",
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m": (
        "I'LL| pay| |123|45| €,| OK|?\n\n| | is|Mixed|(a|)|\t中文|。"
    ),
    "tekken": "I|'LL| pay| |1|2|3|4|5| €,| OK|?\n\n| | is|Mixed|(a|)|\t中文|。",
    "tiny_aya cohere2moe": "I'LL| pay| |12|345| €,| OK|?\n\n| | is|Mixed|(a|)|\t中文|。",
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": (
        "I|'LL| pay| |123|45| €,| OK|?\n\n| | isMixed|(a|)|\t|中文|。"
    ),
    "deepseek-llm": "I|'|LL| pay| |12345| |€|,| OK|?|\n|\n| | isMixed|(|a|)|\t|中文|。",
    "deepseek-coder": "I|'|LL| pay| |1|2|3|4|5| |€|,| OK|?|\n|\n| | isMixed|(|a|)|\t|中文|。",
    "poro-chat bloom gpt3-finnish": "I'LL| pay| 12345| €|,| OK|?\n\n | isMixed|(|a|)\t|中文|。",
    "youtu": "I'LL| pay| |1|2|3|4|5| €,| OK|?\n\n| | is|Mixed|(a|)|\t|中文|。",
    "spark2_5": "I|'LL| pay| |1|2|3|4|5| €,| OK|?|\n|\n| | isMixed|(a|)|\t|中文|。",
    "chameleon": "I|'|LL| pay| |1|2|3|4|5| €|,| OK|?|\n|\n|  |isMixed|(|a|)|\t|中文|。",
    "kimi-k2": "I'LL| pay| |123|45| €,| OK|?\n\n| | is|Mixed|(a|)|\t|中文|。",
    "afmoe": "I|'LL| pay| |12|345| €,| OK|?\n\n| | isMixed|(a|)|\t|中文|。",
    "superbpe": "I'LL pay |12|345| €, OK?\n\n  isMixed(a)\t中文。",
    "viking": "I'LL| pay| |1|2|3|4|5| €|,| OK|?\n\n | isMixed|(|a|)\t|中文|。",
}


@pytest.fixture(scope="module")
def cut(merge_all):
    """A function: (pre-tokenizer, text) -> the words of the text, joined by "|"."""

    def words(pre, text):
        tokenizer = tokenizer_from_metadata(
            merge_all(text) | {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
        )
        return "|".join(tokenizer.piece(id).decode() for id in tokenizer.encode(text))

    return words


@pytest.mark.parametrize(
    "pre, words", [(pre, words) for names, words in WORDS.items() for pre in names.split()]
)
def test_words(cut, pre, words):
    assert cut(pre, TEXT) == words


@pytest.mark.parametrize(
    "pre, text, words",
    [
        ("qwen2", "cafe\u0301s", "cafe|\u0301s"),
        ("qwen35", "cafe\u0301s", "cafe\u0301s"),
        ("gpt-4o", "cafe\u0301s", "cafe\u0301s"),
        ("llama-bpe", "I'm he'LL", "I|'m| he|'LL"),
        ("ufakzeka", "Ankara'da", "Ankara|'da"),
        ("llama-bpe", "Ankara'da", "Ankara|'d|a"),
        ("llama-bpe", "a\r\n \n b", "a|\r\n \n| b"),
        ("gpt-2", "a\r\n \n b", "a|\r\n \n| b"),
        ("qwen2", "x   y", "x|  | y"),
        ("exaone-moe", "one two", "one two"),
        # Its punctuation, ":-~", has the ASCII letters in it.
        (
            "deepseek-llm",
            "naïve Ωμέγα",
            "na|ï|ve| Ωμέγα",
        ),
        ("deepseek-coder", "ひらがな", "ひらがな"),
        ("deepseek-v3", "日本a", "日本|a"),
        ("tekken", "HTTPServer", "HTTPServer"),
        ("gpt-4o", "HTTPServer don't", "HTTPServer| don't"),
        ("tiny_aya", "1234567", "1|234|567"),
        ("jais-2", "a       b", "a|    |  | b"),
        ("llama-bpe", "a       b", "a|      | b"),
        ("youtu", "한국어！日本", "한국어|！|日本"),
        ("kimi-k2", "日本ab's HTTPServer 1234", "日本|ab's| HTTPServer| |123|4"),
        ("kimi-k2", "cafe\u0301s/\n", "cafe\u0301s|/\n"),
        ("afmoe", "a1234567b123 12", "a|1|234|567|b|123| |12"),
        ("afmoe", "x   42", "x|  | |42"),
        ("afmoe", "ひら한국a", "ひら한국|a"),
        ("superbpe", "a b1234 123456x", "a b|1|234| |123|456|x"),
        ("superbpe", "10²345 x½123½45", "10²|345| x|½|123½45"),
        ("chameleon", "x    y\tz", "x|    |y|\t|z"),
    ],
)
@pytest.mark.core
def test_words_that_tell_families_apart(cut, pre, text, words):
    assert cut(pre, text) == words


@pytest.mark.core
def test_ignore_merges_takes_a_word_whole(byte_level):
    """Llama 3 has words that its merges do not make."""
    metadata = byte_level(special={"hello": 1})
    assert tokenizer_from_metadata(metadata | {"tokenizer.ggml.pre": "dbrx"}).encode("hello") != [
        256
    ]
    metadata |= {"tokenizer.ggml.add_bos_token": False}
    for pre in "llama-bpe tekken minicpm5 glm4 glm5 youtu granite-embed-multi-97m".split():
        metadata["tokenizer.ggml.pre"] = pre
        assert tokenizer_from_metadata(metadata).encode("hello") == [256]


@pytest.mark.core
@pytest.mark.parametrize(
    "name, near",
    [("qwen-2", "qwen2 or qwen35"), ("llama-bpe2", "llama-bpe"), ("deepseek_v3", "deepseek-v3")],
)
def test_an_unknown_pre_tokenizer_is_refused_with_the_nearest_names(byte_level, name, near):
    with pytest.raises(ValueError, match=f"tokenizer.ggml.pre is '{name}', .* did you mean {near}"):
        tokenizer_from_metadata(byte_level(pre=name))


@pytest.mark.core
def test_where_no_name_is_near_three_are_given(byte_level):
    with pytest.raises(
        ValueError, match="newer than .* 91 names .* the nearest are [^,]+, [^,]+, [^,]+; update"
    ):
        tokenizer_from_metadata(byte_level(pre="#"))


@pytest.mark.core
@pytest.mark.parametrize(
    "model, hint",
    [
        ("gpt-2", "did you mean gpt2"),
        ("llamas", "did you mean llama"),
        ("rwkv", "known are gpt2, llama, gemma4, bert, t5"),
    ],
)
def test_an_unknown_tokenizer_is_refused(byte_level, model, hint):
    with pytest.raises(ValueError, match=f"tokenizer.ggml.model is '{model}', .* {hint}"):
        tokenizer_from_metadata(byte_level(model=model))


@pytest.mark.core
@pytest.mark.parametrize("pre", [None, ""])
def test_a_missing_pre_tokenizer_is_said(byte_level, pre):
    metadata = byte_level(pre=pre)
    if pre is None:
        del metadata["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match="no tokenizer.ggml.pre"):
        assert len(tokenizer_from_metadata(metadata).encode("12")) == 2


@pytest.mark.core
def test_kimi_k2_may_lack_merges(byte_level):
    metadata = byte_level(words=["ab"], pre="kimi-k2")
    assert len(tokenizer_from_metadata(metadata).encode("ab")) == 1
    del metadata["tokenizer.ggml.merges"]
    with pytest.warns(UserWarning, match="no tokenizer.ggml.merges"):
        assert len(tokenizer_from_metadata(metadata).encode("ab")) == 2


@pytest.mark.core
def test_a_file_without_a_tokenizer_is_named(tmp_path):
    write_gguf(tmp_path / "bare.gguf", {"general.architecture": "llama"}, {})
    with pytest.raises(ValueError, match="bare.gguf: the file has no tokenizer .*convert"):
        load_tokenizer(tmp_path / "bare.gguf")
