"""The notebooks as pages: text, code and, when the site is built, what each cell shows."""

import ast
import contextlib
import io
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import jupytext
import matplotlib
from matplotlib import pyplot
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
RUN = {"cells": False}
"""Whether cells are run: by `mkdocs build`, not at each change that `mkdocs serve` sees."""


def on_startup(*, command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Cells are run for a site that stays."""
    RUN["cells"] = command != "serve"
    matplotlib.use("agg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """A page, a notebook to download and the pictures, for each text."""
    for path in NOTEBOOKS:
        notebook = jupytext.read(path)
        names: dict[str, Any] = {"__name__": "notebook"}
        parts = []
        for number, cell in enumerate(notebook.cells):
            parts.append(cell.source)
            if cell.cell_type == "code":
                parts[-1] = f"```python\n{cell.source}\n```"
                if RUN["cells"]:
                    shown, picture = run(cell.source, names)
                    parts.append(shown)
                    if picture:
                        name = f"{path.stem}-{number}.png"
                        made = File.generated(config, f"notebooks/{name}", content=picture)
                        files.append(made)
                        parts.append(f"![What the cell above draws]({name})")
        title, _, rest = parts[0].partition("\n")
        download = f"[Download as a notebook]({path.stem}.ipynb)"
        text = "\n\n".join([title, download, rest, *parts[1:]])
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        content = jupytext.writes(notebook, fmt="ipynb")
        files.append(File.generated(config, f"notebooks/{path.stem}.ipynb", content=content))
    return files


def run(source: str, names: dict[str, Any]) -> tuple[str, bytes]:
    """What a cell shows, as Markdown, and the picture that it draws."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "notebook", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "notebook", "eval"), names)
    shown = [f"<pre><code>{escape(printed.getvalue())}</code></pre>"] * bool(printed.getvalue())
    picture = io.BytesIO()
    if pyplot.get_fignums():
        pyplot.savefig(picture, dpi=150)
        pyplot.close("all")
    elif hasattr(value, "_repr_html_"):
        shown.append(f"<div>\n{dedent(value._repr_html_())}\n</div>")
    elif value is not None:
        shown.append(f"<pre><code>{escape(repr(value))}</code></pre>")
    return "\n\n".join(shown), picture.getvalue()
