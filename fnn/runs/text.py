"""Text for people: rows under one another, and names without characters that terminals act on."""

import unicodedata
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], sides: str) -> str:
    """The rows as lines, each column as wide as its widest cell and aligned to its side, "<" or
    ">"; the last side is that of all columns left.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    sides = sides.ljust(len(widths), sides[-1])
    line = "  ".join(f"{{:{side}{n}}}" for side, n in zip(sides, widths, strict=False))
    return "\n".join(line.format(*row).rstrip() for row in shown)


def printable(text: str) -> str:
    """The text, its line breaks and invisible control characters as Python writes them."""
    shown = lambda c: c.isprintable() or unicodedata.category(c) == "Zs"
    return "".join(c if shown(c) else repr(c)[1:-1] for c in text)
