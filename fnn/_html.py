"""HTML tables for notebooks."""

from collections.abc import Iterable
from html import escape
from typing import Any


def table(caption: str, heads: Iterable[str], *rows: Iterable[Any]) -> str:
    """The HTML of a table with a caption and a header row."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "</tr><tr>".join([head, *lines])
    return f"<table><caption>{escape(caption)}</caption><tr>{body}</tr></table>"
