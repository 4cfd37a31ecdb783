"""Merges by score. Among equal scores, the leftmost position is merged first.

`tokenizers` ranks pairs of tokens. SentencePiece ranks positions: best score first, then leftmost.
The ids differ only if a text contains several tokens with equal scores.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property

# With more pieces than this, the search for each is skipped and all text is merged by position.
_MOST_PIECES = 64


class LeftmostMerges:
    """Finds the parts of a text that must be merged by position, and merges them.

    Args:
        scores: Text -> score of each token that merges can produce.
        merged: The tokens that consist of two other tokens.
        unlisted: The tokens that `tokenizers` cannot produce.
    """

    def __init__(self, scores: dict[str, float], merged: set[str], unlisted: set[str]):
        self._scores = scores
        # `tokenizers` cannot merge a character that is not a token itself.
        self._alone = unlisted | (set("".join(scores)) - scores.keys())
        self._equals = _equals(scores, merged)
        pieces = [*self._alone, *(text for group in self._equals for text in group)]
        self._pattern = _pattern(pieces)
        self._few = len(pieces) <= _MOST_PIECES

    @cached_property
    def _neighbours(self) -> set[str]:
        """The pairs of adjacent characters in all tokens."""
        return {text[i : i + 2] for text in self._scores for i in range(len(text) - 1)}

    def runs(self, text: str) -> Iterator[tuple[str, bool]]:
        """Splits a text into runs at places that no token crosses.

        Yields:
            (run, whether it must be merged by position).
        """
        start = end = 0
        while found := self._pattern.search(text, end):
            left, end = self._reach(text, found.start(), end)
            if self._needs_places(text[left:end]):
                if start < left:
                    yield text[start:left], False
                yield text[left:end], True
                start = end
        if start < len(text):
            yield text[start:], False

    def _reach(self, text: str, at: int, start: int) -> tuple[int, int]:
        """Returns the closest start and end around `at`, from `start` on, that no token crosses."""
        left, right = at, at + 1
        while left > start and text[left - 1 : left + 1] in self._neighbours:
            left -= 1
        while right < len(text) and text[right - 1 : right + 1] in self._neighbours:
            right += 1
        return left, right

    def _needs_places(self, text: str) -> bool:
        return (
            not self._few
            or any(piece in text for piece in self._alone)
            or any(sum(piece in text for piece in group) > 1 for group in self._equals)
        )

    def merge(self, text: str) -> list[str]:
        """Merges the characters of a text into tokens; characters in no token are kept."""
        symbols, end = list(text), len(text)
        following, preceding = list(range(1, end + 1)), list(range(-1, end - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int):
            if left >= 0 and right < end:
                merged = symbols[left] + symbols[right]
                if merged in self._scores:
                    heapq.heappush(queue, (-self._scores[merged], left, right, merged))

        for left in range(end - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
                continue  # one of the two has merged with another neighbour
            symbols[left], symbols[right] = merged, ""
            following[left] = following[right]
            if following[left] < end:
                preceding[following[left]] = left
            offer(preceding[left], left)
            offer(left, following[left])
        return [symbol for symbol in symbols if symbol]


def _equals(scores, merged) -> list[list[str]]:
    """Returns groups of merged tokens with equal scores."""
    count = Counter(map(scores.__getitem__, merged))
    groups = defaultdict(list)
    for text in merged:
        if count[scores[text]] > 1:
            groups[scores[text]].append(text)
    return list(groups.values())


def _pattern(pieces: list[str]) -> re.Pattern[str]:
    """Returns a regular expression for any of the pieces; for any character if they are many."""
    smallest: list[str] = []
    for piece in sorted(pieces, key=len):
        if not any(small in piece for small in smallest):
            smallest.append(piece)
        if len(smallest) > _MOST_PIECES:
            return re.compile("(?s).")
    return re.compile("|".join(map(re.escape, smallest)) or "(?!)")
