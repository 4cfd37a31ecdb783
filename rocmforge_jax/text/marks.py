"""Marks control tokens that are spelled in users' text, so that they stay plain text.

A rendered prompt is one string, in which a user's "<|im_end|>" looks like the template's. So before
rendering, the user's gets a mark inside: a character that valid text does not contain. The
tokenizer reads the unmarked control tokens, which are the template's, and then removes the marks.

A template that prints a list, or a text with "%r", writes the mark as an escape sequence.
`unescaped` restores the character. If a user's text spells such a sequence, it also gets a mark
inside, so that it is kept.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

# A lone surrogate, which cannot be encoded as UTF-8.
MARK = "\udbff"

# Matches user-defined tokens that are not normal text, such as "<|user|>", which Phi-4's template
# builds from pieces. Other user-defined tokens, such as Gemma's "<table>", are text.
_LIKE_CONTROL = re.compile(r"<[|｜].+>|<.+[|｜]>", re.DOTALL)
_WORD = re.compile(r"\w+")


# Matches Python's repr of a mark, and of its bytes. Before the second half of a surrogate pair,
# that is JSON for a valid character. The sequence with "e" is the sign of `continuation`.
_ESCAPED = re.compile(r"(\\+)(?:udbf([ef])(?!\\+ud[c-f])|xed\\+xaf\\+xb([ef]))")
_SPELLED = re.compile(r"(?<=u)(?=dbf[ef](?!\\+ud[c-f]))|(?<=x)(?=ed\\+xaf)")


def shield(text: str) -> str:
    """Inserts a mark into each spelled escape sequence of a mark."""
    return _SPELLED.sub(MARK, text)


def unescaped(text: str) -> str:
    """Converts escape sequences of marks back to marks."""

    def mark(found: re.Match) -> str:
        # Each repr doubles the preceding backslashes. So the lowest set bit of their number is the
        # number that belongs to the sequence.
        count = len(found[1])
        return "\\" * (count & (count - 1)) + chr(0xDBF0 + int(found[2] or found[3], 16))

    return _ESCAPED.sub(mark, text)


def looks_like_control(token: str) -> bool:
    """Returns whether a token has the form <|...|>, <|...> or <...|>."""
    return bool(_LIKE_CONTROL.fullmatch(token))


def mark_all(value: Any, mark: Callable[[str], str]) -> Any:
    """Applies `mark` to each string in JSON data, including dictionary keys.

    Keys that are a single word are skipped, and so are one-word values of "type" and "role".
    Templates compare these words, so they must not change, even if a control token has that name.
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
    a token, or begins with the end of one, gets a mark there. Otherwise the adjacent text could
    complete the token. A text of one word does not get these marks at its ends. Templates compare
    such texts and build tokens from them on purpose, as in '<|' + role + '|>'.
    """

    def __init__(self, tokens: Iterable[str]):
        # A token of one character is produced by plain text too, so it needs no mark.
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

        # Checks each position separately, so that overlapping tokens each get a mark.
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
    """Returns the marker of these tokens, cached since a vocabulary can have thousands of them."""
    return Marker(tokens)
