"""Docstrings as Markdown: examples become fenced blocks, and a formula's stars stay stars."""

import re
from textwrap import dedent
from typing import Any

import griffe

CODE = re.compile(r"(`[^`]*`)")


class Markdown(griffe.Extension):
    """Rewrites each docstring as griffe loads it."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for each module, class, function and value."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring with its examples fenced and its prose escaped.

    A paragraph that begins with a prompt is an example, an indented one code, any other prose.
    """
    paragraphs = re.split(r"\n\s*\n", text)
    blocks, examples = [], []
    for paragraph in paragraphs:
        if paragraph.lstrip().startswith(">>> "):
            examples.append(dedent(paragraph).strip("\n"))
            continue
        if examples:
            blocks.append(fenced("\n".join(examples), "pycon"))
            examples = []
        blocks += prose(paragraph)
    if examples:
        blocks.append(fenced("\n".join(examples), "pycon"))
    return "\n\n".join(blocks)


def prose(paragraph: str) -> list[str]:
    """Prose, with what is indented under it, or an example that follows it at once, as code."""
    lines = paragraph.split("\n")
    for i, line in enumerate(lines):
        if line.startswith(("    ", ">>> ")):
            language = "pycon" if ">>>" in line else "text"
            before = [escaped("\n".join(lines[:i]))] if i else []
            return [*before, fenced(dedent("\n".join(lines[i:])), language)]
    return [escaped(paragraph)]


def escaped(text: str) -> str:
    """Stars, underscores and angles that Markdown would take for its own."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", p).replace("<", "&lt;") for p in parts[::2]]
    return "".join(parts)


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
