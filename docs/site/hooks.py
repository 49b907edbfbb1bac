"""What the site has besides the pages in docs/: the reference, the command, the benchmarks' page.

Links that lead out of docs/ in the repository are turned to the site's own pages, and each public
name in a page's text leads to its reference.
"""

import ast
import re
import sys
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

COPIED = {
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that stand elsewhere in the repository."""
SOURCES = {source: page for page, source in COPIED.items()} | {"README.md": "index.md"}
PACKAGES = ["verify", "per_example", "curvature", "schedules", "initializers", "parallel"]
PACKAGES += ["data", "checkpoint", "export", "runs", "targets", "estimators"]
"""Public modules whose names are used through them, such as `fnn.verify.check_layer`."""
TITLES = {
    "base": "Types", "layers": "Layers", "activations": "Activations", "combinators": "Combinators",
    "memory": "Memory", "precision": "Precision", "models": "Models", "losses": "Losses",
    "backprop": "Gradients", "reductions": "Factors", "autodiff": "Autodiff",
    "optimizers": "Optimizers", "wrappers": "Wrappers", "training": "Training",
    "adapters": "Adapters",
}  # fmt: skip
"""Of the modules whose names are `fnn`'s own, in the order of the site."""


def imported(package: str) -> dict[str, str]:
    """{name: the module that defines it} of what a module imports or defines in public."""
    path = ROOT / "fnn" / package
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():
        return {}
    found = {}
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ImportFrom(module=str(module)) if path.name == "__init__.py":
                if module.startswith("fnn"):
                    found |= {alias.asname or alias.name: module for alias in node.names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = f"fnn.{package}"
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = f"fnn.{package}"
    return {name: home for name, home in found.items() if not name.startswith("_")}


def reference() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """{page: (title, [(the name as it is used, where it is defined)])}."""
    homes = import_module("fnn")._HOMES
    pages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for room, title in TITLES.items():
        names = [n for n, home in homes.items() if home.split(".")[1:2] == [room]]
        pages[f"api/{room}.md"] = (title, [(f"fnn.{n}", f"{homes[n]}.{n}") for n in names])
    for package in PACKAGES:
        found = [(f"fnn.{package}.{n}", f"{home}.{n}") for n, home in imported(package).items()]
        if found:
            pages[f"api/{package}.md"] = (f"fnn.{package}", found)
    return pages


def page_of(title: str, names: list[tuple[str, str]]) -> str:
    """A page of the reference."""
    parts = [f"# {title}\n"]
    if title.startswith("fnn."):
        lines = (import_module(title).__doc__ or "").strip().split("\n\n")[0]
        parts.append(lines + "\n")
    for used, defined in names:
        parts.append(f"::: {defined}\n    options:\n      heading: {used}\n")
    return "\n".join(parts)


def command() -> str:
    """The command's reference, from click's own declarations."""
    from fnn.cli.group import COMMANDS

    parts = ["# The command\n", "Every command answers `--help`.\n"]
    for name, summary in COMMANDS.items():
        module = name.replace("-", "_")
        found: click.Command = getattr(import_module(f"fnn.cli.{module}"), module)
        with click.Context(found, info_name=f"fnn {name}") as context:
            usage = found.get_usage(context).removeprefix("Usage: ")
            parts.append(f"## fnn {name}\n\n{summary}\n\n```sh\n{usage}\n```\n")
            paragraphs = cleandoc((found.help or "").replace("\b", "")).split("\n\n")
            parts += [cell(text) + "\n" for text in paragraphs[1:]]
            options = [p for p in found.params if isinstance(p, click.Option)]
            records = filter(None, (option.get_help_record(context) for option in options))
            rows = [f"| `{option}` | {cell(text)} |" for option, text in records]
            if rows:
                parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def cell(text: str) -> str:
    """A help text as one line of Markdown."""
    return re.sub(r"\s+", " ", re.sub(r"([*_\[\]])", r"\\\1", text)).replace("<", "&lt;")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference's pages join the navigation."""
    entries = [{title: path} for path, (title, _) in reference().items()]
    for section in config.nav or []:
        if "Reference" in section:
            section["Reference"] = [*section["Reference"][:1], *entries]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made here, and the pictures that pages show."""
    made = {path: page_of(*content) for path, content in reference().items()}
    made["command.md"] = command()
    made |= {page: (ROOT / source).read_text() for page, source in COPIED.items()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def names() -> dict[str, str]:
    """{a name as pages write it: its anchor}."""
    found = {}
    for _, listed in reference().values():
        for used, defined in listed:
            found[used] = defined
            found.setdefault(used.removeprefix("fnn."), defined)
            if used.count(".") == 2:
                found.setdefault(used.rpartition(".")[2], defined)
    for package in PACKAGES:
        if imported(package):
            found[f"fnn.{package}"] = f"api/{package}"
    return found


NAMES = names()
SHORT = {"load", "save", "split", "train", "parts", "inputs", "constant", "zeros", "ones", "normal"}
SHORT |= {"search"}
"""Too common as words to be linked without their module."""


def on_page_markdown(text: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    path = page.file.src_uri
    if path.startswith(("api/", "notebooks/")):
        return text
    source = Path(COPIED.get(path, f"docs/{path}"))

    def turn(match: re.Match[str]) -> str:
        target = turned(match[2], source)
        inside = target.partition("#")[0].endswith((".md", ".png")) or "://" in target
        shown = re.sub(r"^`?([\w-]+)\.md`?$", r"\1", match[1]) if inside else match[1]
        return f"[{shown}]({target})" if inside or target[0] == "#" else shown

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", turn, text)


def on_page_content(html: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Each public name in the text and in the programs of a page leads to its reference."""
    if page.file.src_uri in ("changelog.md", "command.md"):
        return html
    parts = re.split(r"(<(a|h\d|autoref|pre|summary)\b.*?</\2>)", html, flags=re.S)
    for i in range(0, len(parts), 3):
        parts[i] = NAME.sub(lambda m: leading(m[0], m[1], page), parts[i])
        if i + 1 < len(parts) and parts[i + 2] == "pre":
            parts[i + 1] = DOTTED.sub(lambda m: in_program(m[0], page), parts[i + 1])
    return "".join(part for i, part in enumerate(parts) if i % 3 < 2)


NAME = re.compile(r"<code>((?:\w+\.)*\w+)(?:\([^<]*)?</code>")
DOT = '<span class="o">.</span>'
DOTTED = re.compile(rf'<span class="n">\w+</span>(?:{re.escape(DOT)}<span class="n">\w+</span>)+')


def leading(html: str, name: str, page: Any) -> str:
    """The HTML of a name as a link to its reference, where it has one."""
    anchor = NAMES.get(name) if name not in SHORT else None
    if anchor is None:
        return html
    if anchor.startswith("api/"):
        return f'<a href="{get_relative_url(anchor, page.url)}/">{html}</a>'
    return f'<autoref identifier="{anchor}">{html}</autoref>'


def in_program(html: str, page: Any) -> str:
    """The longest beginning of `a.b.c`, in a program's HTML, that is a public name as a link."""
    spans = html.split(DOT)
    words = [re.sub(r"<[^>]+>", "", span) for span in spans]
    for n in range(len(words), 1, -1):
        if (name := ".".join(words[:n])) in NAMES:
            return DOT.join([leading(DOT.join(spans[:n]), name, page), *spans[n:]])
    return html


def turned(target: str, source: Path) -> str:
    """Where a link of the repository leads on the site; unchanged where it has no page there."""
    if "://" in target or target.startswith("#"):
        return target
    path, _, anchor = target.partition("#")
    place = (ROOT / source.parent / path).resolve().relative_to(ROOT).as_posix()
    if place.startswith("benchmarks/results/"):
        place = place.removeprefix("benchmarks/")
    elif place.startswith("docs/"):
        place = place.removeprefix("docs/")
    else:
        place = SOURCES.get(place, place)
    return f"{place}#{anchor}" if anchor else place
