"""Small pieces of HTML for what objects look like in a notebook.

There are no scripts and no external resources. Every text is escaped and shortened here, so that
nothing that a file or a model contains becomes markup.
"""

import html
from collections.abc import Iterable, Sequence
from typing import Any

#: Characters of a text, and rows of a table, that are shown.
MOST_CHARACTERS, MOST_ROWS = 120, 50
#: Colours of neighbouring tokens, in turn.
COLOURS = ("#bfdbfe", "#bbf7d0", "#fde68a", "#fecaca", "#ddd6fe")


class Markup(str):
    """HTML that is finished. Any other text is escaped."""


def escape(value: Any, most: int = MOST_CHARACTERS) -> Markup:
    """Escapes a text. Of a long one it is the beginning and the number of characters.

    Args:
        value: Anything; finished `Markup` is returned unchanged.
        most: Characters that are kept.
    """
    if isinstance(value, Markup):
        return value
    # Without the cut, repr or str of a long text would be made and escaped as a whole.
    text = value if isinstance(value, str) else str(value)
    more = f"... ({len(text):,} characters)" if len(text) > most else ""
    return Markup(html.escape(text[:most] + more))


def element(name: str, *content: Any, style: str = "", title: str = "") -> Markup:
    """Makes an element of its content, each part escaped unless it is `Markup`."""
    attributes = f' style="{html.escape(style)}"' if style else ""
    attributes += f' title="{escape(title)}"' if title else ""
    return Markup(f"<{name}{attributes}>{''.join(map(escape, content))}</{name}>")


def joined(*parts: Any) -> Markup:
    """Puts parts one after another in a block of their own."""
    return element("div", *parts)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], *, most: int = MOST_ROWS) -> Markup:
    """Makes a table. A long table shows its first rows and the number of omitted ones."""
    rows = list(rows)
    lines = [element("tr", *(_cell("th", cell) for cell in header))]
    lines += [element("tr", *(_cell("td", cell) for cell in row)) for row in rows[:most]]
    if (left := len(rows) - most) > 0:
        lines.append(element("tr", _cell("td", f"and {left:,} more")))
    return element("table", *lines)


def _cell(name: str, content: Any) -> Markup:
    return element(name, content, style="text-align: left; white-space: pre-wrap")


def details(summary: Any, *content: Any) -> Markup:
    """Makes a part that is folded up until its summary is clicked."""
    return element("details", element("summary", summary), *content)


def spans(
    pieces: Iterable[str], colours: Iterable[str], titles: Iterable[str], *, most: int = 1000
) -> Markup:
    """Makes a text of coloured pieces. Of a long one it is the first pieces and how many are left.

    Args:
        pieces: The texts, with white space made visible.
        colours: A CSS colour for each.
        titles: What appears when the pointer rests on a piece.
        most: Pieces that are shown.
    """
    parts = list(zip(pieces, colours, titles))
    shown = [
        element("span", visible(text), style=f"background: {colour}; color: #111", title=title)
        for text, colour, title in parts[:most]
    ]
    if (left := len(parts) - most) > 0:
        shown.append(escape(f" and {left:,} more"))
    return element("div", *shown, style="white-space: pre-wrap; line-height: 1.7")


def shade(share: float, hue: int = 210) -> str:
    """Returns a CSS colour for a share from 0 to 1, the darker the larger; black text suits it."""
    return f"hsl({hue}, 80%, {97 - 32 * min(max(share, 0.0), 1.0):.0f}%)"


def visible(text: str) -> str:
    """Makes line breaks and tabs visible. A line break stays one."""
    return text.replace("\n", "\u21b5\n").replace("\t", "\u21e5\t")


def histogram(counts: Sequence[int], low: float, high: float) -> Markup:
    """Draws a histogram as an inline SVG with the ends of its range.

    Args:
        counts: How many values are in each of the bins, which have equal widths.
        low: Where the first bin begins.
        high: Where the last bin ends.
    """
    width, height, most = 300, 60, max(*counts, 1)
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / most:.1f}"'
        f' width="{step:.1f}" height="{height * count / most:.1f}" fill="#3b82f6"/>'
        for i, count in enumerate(counts)
    )
    ends = (
        f'<text x="0" y="{height + 13}" font-size="11" fill="currentColor">{low:.4g}</text>'
        f'<text x="{width}" y="{height + 13}" font-size="11" fill="currentColor"'
        f' text-anchor="end">{high:.4g}</text>'
    )
    return Markup(f'<svg width="{width}" height="{height + 16}">{bars}{ends}</svg>')


def sized(nbytes: int) -> str:
    """Writes a number of bytes in a unit that suits it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"
