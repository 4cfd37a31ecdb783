"""Marks control tokens that are spelled in somebody's text, so that they stay text.

A rendered prompt is one string, in which a user's "<|im_end|>" looks like the template's. So a
character that no valid text has is put inside the user's before rendering. The tokenizer takes it
out after it has read the control tokens that are left, which are the template's.

A template that prints a list, or a text with "%r", writes the mark as an escape sequence.
`unescaped` makes it the character again. A text in which somebody spells such a sequence gets a
mark inside it, so that it stays.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

# A lone surrogate: no text that can be written as UTF-8 has one.
MARK = "\udbff"

# User-defined tokens that nobody writes as text, such as "<|user|>", which Phi-4's template puts
# together from pieces. Others, such as Gemma's "<table>", are text.
_LIKE_CONTROL = re.compile(r"<[|｜].+>|<.+[|｜]>", re.DOTALL)
_WORD = re.compile(r"\w+")


# What Python writes for a mark in a repr, and for its bytes. Before the second half of a pair it is
# JSON for a valid character. `continuation` has a sign of its own.
_ESCAPED = re.compile(r"(\\+)(?:udbf([ef])(?!\\+ud[c-f])|xed\\+xaf\\+xb([ef]))")
_SPELLED = re.compile(r"(?<=u)(?=dbf[ef](?!\\+ud[c-f]))|(?<=x)(?=ed\\+xaf)")


def shield(text: str) -> str:
    """Puts a mark inside each escape sequence of a mark that is spelled in a text."""
    return _SPELLED.sub(MARK, text)


def unescaped(text: str) -> str:
    """Turns escape sequences of marks back into marks."""

    def mark(found: re.Match) -> str:
        # A repr doubles the backslashes before the sequence, so the lowest bit of their number is
        # what the sequence has.
        count = len(found[1])
        return "\\" * (count & (count - 1)) + chr(0xDBF0 + int(found[2] or found[3], 16))

    return _ESCAPED.sub(mark, text)


def looks_like_control(token: str) -> bool:
    """Whether a token has the form <|...|>, <|...> or <...|> of the tokens that build turns."""
    return bool(_LIKE_CONTROL.fullmatch(token))


def mark_all(value: Any, mark: Callable[[str], str]) -> Any:
    """Applies `mark` to each string in JSON data, keys of dictionaries included.

    Keys of one word, and types and roles of one word, are the words that templates ask for. They
    stay as they are even if the vocabulary has a control token of that name.
    """
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {
            _unless_word(key, mark): _unless_word(item, mark)
            if key in ("role", "type")
            else mark_all(item, mark)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [mark_all(item, mark) for item in value]
    return value


def _unless_word(value: Any, mark: Callable[[str], str]) -> Any:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else mark_all(value, mark)


class Marker:
    """Marks the control tokens of one vocabulary.

    Each spelled token gets a mark after its first character. A text that ends with the beginning of
    a token, or begins with the end of one, gets a mark there: what the template, or another text,
    puts beside it could complete the token. A text of one word gets none of these, since templates
    compare such texts and build tokens from them on purpose, as in '<|' + role + '|>'.
    """

    def __init__(self, tokens: Iterable[str]):
        # Plain text gives a token of one character in any case.
        self._tokens = {token for token in tokens if len(token) > 1}
        self._lengths = sorted(set(map(len, self._tokens)))
        first = "".join(sorted({token[0] for token in self._tokens}))
        self._first = re.compile(f"[{re.escape(first)}]" if first else "(?!)")
        cuts = [
            (token[:cut], token[cut:]) for token in self._tokens for cut in range(1, len(token))
        ]
        self._beginnings = {beginning for beginning, _ in cuts}
        self._ends = {end for _, end in cuts}
        self._all = "\0".join(self._tokens)

    def __call__(self, text: str) -> str:
        """Marks a text."""

        def marked(found: re.Match) -> str:
            start = found.start()
            is_spelled = any(text[start : start + n] in self._tokens for n in self._lengths)
            return found[0] + MARK if is_spelled else found[0]

        # Looks at each place by itself, so that each of two tokens that overlap gets its mark.
        text = shield(self._first.sub(marked, text))
        words = text.strip()
        if not words or _WORD.fullmatch(words):
            return text
        before, after = text[: text.index(words)], text[text.index(words) + len(words) :]
        return before + self._at_ends(words) + after

    def _at_ends(self, text: str) -> str:
        lengths = range(1, min(max(self._lengths, default=0), len(text) + 1))
        is_within = text in self._all
        if any(text[-length:] in self._beginnings for length in lengths):
            text += MARK
        if is_within or any(text[:length] in self._ends for length in lengths):
            text = MARK + text
        return text


@functools.lru_cache(maxsize=8)
def marker(tokens: tuple[str, ...]) -> Marker:
    """The marker of these tokens; those of a vocabulary can be thousands, so it is kept."""
    return Marker(tokens)
