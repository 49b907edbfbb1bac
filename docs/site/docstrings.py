"""Docstrings as Markdown: examples become fenced blocks, equations are set with their indices."""

import re
from html import escape
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
            before = [escaped("\n".join(lines[:i]))] if i else []
            block = dedent("\n".join(lines[i:]))
            if block.startswith("forward") or "^" in block:
                return [*before, equations(block)]
            return [*before, fenced(block, "pycon" if ">>>" in line else "text")]
    return [escaped(paragraph)]


def escaped(text: str) -> str:
    """Prose with its indices set, and what Markdown would take for its own escaped."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", typeset(escape(p, False))) for p in parts[::2]]
    return "".join(parts)


def typeset(formula: str) -> str:
    """HTML with x_i and x^T as index and exponent, arrows, and sums and roots as signs."""
    formula = re.sub(r"\bsum_(?=\w\b|\()", "\u2211_", formula).replace("sqrt(", "\u221a(")
    for mark, tag in (("_", "sub"), (r"\^", "sup")):
        found = rf"(?<=[\w)|>\u2211]){mark}(?:\(([^()]+)\)|(-?[A-Za-z0-9])(?![A-Za-z0-9_]))"
        formula = re.sub(found, lambda m, t=tag: f"<{t}>{m[1] or m[2]}</{t}>", formula)
    return formula.replace("-&gt;", "\u2192").replace("&lt;-", "\u2190").replace("&lt;=", "\u2264")


def equations(block: str) -> str:
    """A block of equations, in which what stands before the first = keeps its width."""
    lines = []
    for line in block.split("\n"):
        left, equals, right = escape(line, False).partition("=")
        width = " " * len(re.findall(r"[_^]", left)) if equals else ""
        lines.append(typeset(left) + width + equals + typeset(right).replace(" * ", " \u2299 "))
    return '<pre class="equations"><code>' + "\n".join(lines) + "</code></pre>"


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
