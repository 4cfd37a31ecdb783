r"""The regular expressions for the values of `tokenizer.ggml.pre`.

Byte-level BPE splits text into words with them before it merges. The names follow llama.cpp
(src/llama-vocab.cpp, `llama_vocab::impl::load`). The expressions come from the models' own
tokenizer.json. llama.cpp quotes these, but runs approximations where std::regex lacks the syntax
(`(?i:...)`, possessive quantifiers, `\p{Lu}` in a class).

In a tuple, each expression splits the pieces that the previous ones have left, matches and gaps
alike.
"""

import difflib
from dataclasses import dataclass

from rocmforge_jax.gguf import GGUFError
from rocmforge_jax.text.vocabulary import SPACE

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PUNCTUATION_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_HAN_KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
# Words in one case or capitalised: upper-case or uncased letters, then lower-case or uncased ones.
# One of the two parts may be empty.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)


def _cased(numbers: str, suffix: str = "") -> str:
    return "|".join(
        (_CASED[0] + suffix, _CASED[1] + suffix, numbers, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES)
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}{1,3}" + f"|{_SYMBOLS}|{_SPACES}"
_QWEN2 = f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}" + f"|{_SYMBOLS}|{_SPACES}"
_GPT4O = _cased(r"\p{N}{1,3}", _CONTRACTIONS + "?")
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _HAN_KANA,
    _PUNCTUATION_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)
_KIMI_UPPER, _KIMI_LOWER = (f"{kind[:-1]}&&[^\\p{{Han}}]]" for kind in (_UPPER, _LOWER))
_KIMI = r"\p{Han}+|" + _GPT4O.replace(_UPPER, _KIMI_UPPER).replace(_LOWER, _KIMI_LOWER).replace(
    r"[\r\n/]*", r"[\r\n]*"
)
_LINES = (r"[^\n]+|[\n]+",)


def _rest_of_threes(digit: str) -> str:
    """Matches the one or two digits before groups of three, at the start of a run of digits.

    The run is scanned once. Counting from each of its digits would take quadratic time.
    """
    return rf"(?<!{digit}){digit}{{1,2}}(?=(?:{digit}{{3}})*+(?!{digit}))"


_NUMBER, _DIGIT = r"\p{N}", r"\d"
# Matches what is never split if a text is split only before groups of three digits.
_UNCUT = rf"(?:\D|{_rest_of_threes(_DIGIT)})"
# The first group of a number keeps the text before it.
_AFMOE_NUMBERS = rf"\P{{N}}*+(?:{_rest_of_threes(_NUMBER)}|\p{{N}}{{3}})|\P{{N}}++"
# Han, kana, Thai, Lao, Khmer, Burmese and Hangul. llama.cpp has U+8C48 in place of U+F900.
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_JAIS2_SPACES = r"\s*[\r\n]+|" + "".join(rf"\s{{{2**i}}}(?!\S)|" for i in range(9, 1, -1))
_JAIS2_SPACES += r"\s{1,2}(?!\S)|\s{1}"
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"
# The cased letters of the Unicode version that DeepSeek's list is based on. They are escaped,
# because editors normalise a few of them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d"
    "\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a pre-tokenizer splits text into words.

    Attributes:
        patterns: Regular expressions, in the order of application.
        ignore_merges: Whether a word that is a token becomes that token, regardless of the merges.
        add_bos: The default if the file lacks `tokenizer.ggml.add_bos_token`.
        always_bos: Whether texts get a bos token regardless of that key.
        byte_level: Whether merges work on bytes; otherwise on characters.
        space: The character that replaces a space.
        whole_newlines: Whether a run of newlines that is a token becomes that token.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    always_bos: bool = False
    byte_level: bool = True
    space: str = " "
    whole_newlines: bool = False


_TABLE: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
    (
        (
            "gpt-2 mpt olmo jais trillion granite-docling phi-2 gigachat mellum modern-bert exaone4"
            " a.x-4.0 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe"
        ),
        PreTokenizer((_GPT2,)),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", PreTokenizer((_LLAMA3,))),
    ("glm4 glm5", PreTokenizer((_LLAMA3,), ignore_merges=True)),
    ("jais-2", PreTokenizer((_LLAMA3.removesuffix(_SPACES) + _JAIS2_SPACES,))),
    (
        "qwen2 stablelm2 hunyuan solar-open grok-2 megrez deepseek-r1-qwen kormo f2llmv2",
        PreTokenizer((_QWEN2,)),
    ),
    (
        "qwen35",
        PreTokenizer(
            (
                _QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
                    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
                ),
            )
        ),
    ),
    ("laguna", PreTokenizer((*_LINES, _QWEN2))),
    ("ufakzeka", PreTokenizer((_QWEN2.removeprefix(f"{_CONTRACTIONS}|"),))),
    (
        "seed-coder",
        PreTokenizer(
            (f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,)
        ),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(
            (
                (
                    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
                    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
                ),
            )
        ),
    ),
    (
        "exaone-moe",
        PreTokenizer(
            (
                _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n/]?"
                r"|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    (
        "minicpm5",
        PreTokenizer(
            (r"\p{N}{1,3}", f"{_CONTRACTIONS}|{_WORD}|" + r"\p{N}+" + f"|{_SYMBOLS}|{_SPACES}"),
            ignore_merges=True,
        ),
    ),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,))),
    ("kimi-k2", PreTokenizer((_KIMI,))),
    ("granite-embed-multi-97m", PreTokenizer((_GPT4O,), ignore_merges=True)),
    (
        "youtu",
        PreTokenizer((_YOUTU_SCRIPTS, _cased(r"\p{N}", _CONTRACTIONS + "?")), ignore_merges=True),
    ),
    ("tekken", PreTokenizer((_cased(r"\p{N}"),), ignore_merges=True, add_bos=True)),
    ("tiny_aya cohere2moe", PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(_DEEPSEEK3)),
    (
        "spark2_5",
        PreTokenizer(
            (
                *_DEEPSEEK3[:2],
                _PUNCTUATION_WORD + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|"
                r"\s+(?!\S)|\s+",
                r"\p{N}",
            )
        ),
    ),
    ("afmoe", PreTokenizer((_AFMOE_NUMBERS, _AFMOE_SCRIPTS, _DEEPSEEK3[2]))),
    ("superbpe", PreTokenizer((r"\p{N}+", rf"{_UNCUT}+|\d{{3}}{_UNCUT}*"))),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                "([\\t\\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    (
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_CASED_LETTERS}]+",
                "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-\ud7ff]+",
                r"\p{N}+",
            )
        ),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    ),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",))),
    ("viking", PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"))),
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer(
            _LINES,
            add_bos=True,
            always_bos=True,
            byte_level=False,
            space=SPACE,
            whole_newlines=True,
        ),
    ),
    ("sarvam-moe", PreTokenizer(_LINES, byte_level=False, space=SPACE)),
    ("whitespace", PreTokenizer((r"\S+",), byte_level=False)),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: rule for names, rule in _TABLE for name in names.split()
}


#: The longest list of names in a message.
_MOST_NAMES = 20


def nearest(name: str, known) -> str:
    """Returns the end of an error message: the known names most similar to `name`, or a few."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(known) <= _MOST_NAMES:
        return f"known are {', '.join(known)}"
    close = difflib.get_close_matches(name, known, n=3, cutoff=0)
    return f"the nearest are {', '.join(close)}; update rocmforge-jax"


def pre_tokenizer(name: str) -> PreTokenizer:
    """Returns the rule for a value of `tokenizer.ggml.pre`.

    Raises:
        GGUFError: The name is unknown; the message lists the nearest names.
    """
    if name not in PRE_TOKENIZERS:
        raise GGUFError(
            f"tokenizer.ggml.pre is {name!r}, which is newer than this version, or misspelt (it has"
            f" the {len(PRE_TOKENIZERS)} names of llama.cpp's table):"
            f" {nearest(name, PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]
