"""What the documents show is true: docstrings' examples, the pages' programs, outputs and names."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import itertools
import pkgutil
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner

import fnn
from fnn import cli

pytestmark = pytest.mark.usefixtures("compiled_once")

ROOT = Path(__file__).parents[1]
MODULES = ["fnn", *(m.name for m in pkgutil.walk_packages(fnn.__path__, "fnn."))]
MODULES.remove("fnn.__main__")
PACKAGES = ["verify", "per_example", "curvature", "checkpoint", "data", "schedules"]
PUBLIC = ["fnn", *(f"fnn.{name}" for name in [*PACKAGES, "parallel", "export"])]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]
PAGES += [ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
README = TEXT["README.md"]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def value_docstrings(source):
    """The strings that document module-level values: (name, docstring, line)."""
    body = ast.parse(source).body
    for value, after in itertools.pairwise(body):
        match value, after:
            case (
                (ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name))),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, text, after.lineno


def source_of(module):
    return Path(module.__file__).read_text()


def examples(module):
    """All doctests of a module: of its functions, classes and methods, and of its values."""
    yield from doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    parser = doctest.DocTestParser()
    for name, text, line in value_docstrings(source_of(module)):
        path = f"{module.__name__}.{name}"
        test = parser.get_doctest(text, dict(vars(module)), path, module.__file__, line - 1)
        if test.examples:
            yield test


def public(package):
    """{name: the module that defines it} of what a public module or package offers."""
    if package == "fnn":
        return {name: home for name, home in fnn._HOMES.items() if home != "fnn"}
    module = importlib.import_module(package)
    if not hasattr(module, "__path__"):
        return dict.fromkeys((n for n in defined(module) if not n.startswith("_")), package)
    imports = [n for n in ast.parse(source_of(module)).body if isinstance(n, ast.ImportFrom)]
    return {alias.name: n.module for n in imports for alias in n.names}


def without_example(package):
    """The public functions, classes, methods, layers and losses whose docstring has no example.

    An overriding method is documented where the method is first defined, a property by its class.
    """
    for name, home in public(package).items():
        value = getattr(importlib.import_module(package), name)
        if isinstance(value, fnn.Layer | fnn.Loss):
            source = source_of(importlib.import_module(home))
            text = {name: text for name, text, _ in value_docstrings(source)}.get(name)
            if ">>>" not in (text or ""):
                yield name
        elif inspect.isfunction(value) or inspect.isclass(value):
            yield from lacking(value, name)


def lacking(value, name):
    if not value.__module__.startswith("fnn"):
        return
    if ">>>" not in (value.__doc__ or ""):
        yield name
    if isinstance(value, type):
        for inner, method in vars(value).items():
            inherited = any(hasattr(base, inner) for base in value.__bases__)
            if inspect.isfunction(method) and not inner.startswith("_") and not inherited:
                yield from lacking(method, f"{name}.{inner}")


@pytest.mark.long
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    runner, printed = doctest.DocTestRunner(), io.StringIO()
    for test in examples(importlib.import_module(name)):
        runner.run(test, out=printed.write)
    assert runner.failures == 0, printed.getvalue()


@pytest.mark.parametrize("package", PUBLIC)
def test_everything_public_has_an_example(package):
    assert public(package)
    missing = list(without_example(package))
    assert not missing, f"{package}: no example of {', '.join(missing)}"


def test_the_examples_of_values_are_found():
    found = {test.name for test in examples(importlib.import_module("fnn.losses"))}
    assert "fnn.losses.mse" in found
    assert "fnn.losses.softmax_cross_entropy" in found


def blocks(page, language):
    """(line of its first line, content) of a page's fenced blocks in a language."""
    text = TEXT[page]
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def output_after(page, line):
    """The ```text block that stands directly under the program whose last line is above `line`."""
    match = re.match(r"```\n\n```text\n(.*?)```", "\n".join(TEXT[page].split("\n")[line:]), re.S)
    return match[1] if match else None


def agree(got, shown, rtol=0.1, atol=1e-5, counts=0):
    """Whether the words are the same, and the numbers to a tenth, or tiny: rounding errors. Whole
    numbers may also differ by `counts`."""
    words = [NUMBER.sub("#", text).split() for text in (got, shown)]
    pairs = zip(NUMBER.findall(got), NUMBER.findall(shown), strict=False)
    return words[0] == words[1] and all(
        np.isclose(float(a), float(b), rtol, counts if b.isdigit() and counts else atol)
        for a, b in pairs
    )


def without_times(text):
    """The text of a session but for its lines that say how fast something was."""
    return "\n".join(line for line in text.splitlines() if "per second" not in line)


def check_session(page, session):
    """Run the commands of a session, which stand after "$ ", and compare what they print."""
    for part in re.split(r"^\$ ", session, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        name, *args = shlex.split(command)
        assert name == "fnn", f"{page}: {command}"
        got = CliRunner().invoke(cli.fnn, args).output
        if shown.endswith("...\n"):  # and so on
            shown = shown.removesuffix("...\n")
            got = "\n".join(got.splitlines()[: shown.count("\n")])
        # Another machine rounds otherwise, which can move a count of examples by one or two.
        same = agree(without_times(got), without_times(shown), rtol=0.3, atol=0.05, counts=2)
        assert same, f"{page}: {command}\n{got}"


def programs():
    """The pages with programs. A convolution is slow where XLA optimizes little."""
    for page in TEXT:
        if list(blocks(page, "python")):
            slow = "conv2d" in TEXT[page]
            yield pytest.param(page, marks=[pytest.mark.optimized] if slow else [])


def lacks(program):
    """Whether a program needs a library that the extra `test` does not install."""
    words = set(re.findall(r"^(?:import|from) (\w+)", program, re.M))
    optional = {"equinox", "flax", "torch", "tensorboardX", "wandb"}
    return any(find_spec(name) is None for name in words & optional)


@pytest.mark.long
@pytest.mark.parametrize("page", list(programs()))
def test_programs(page, tmp_path, monkeypatch):
    """The programs of a page run in their order, in one namespace, and print what it shows; so do
    the commands of its sessions."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    found = [(*block, name) for name in ("python", "console") for block in blocks(page, name)]
    for line, program, language in sorted(found):
        if language == "console":
            check_session(page, program)
            continue
        if lacks(program):
            continue
        printed = io.StringIO()
        code = compile("\n" * (line - 1) + program, page, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        shown = output_after(page, line - 1 + program.count("\n"))
        assert printed.getvalue() == "" or shown is not None, f"{page}:{line} shows no output"
        assert shown is None or agree(printed.getvalue(), shown), printed.getvalue()
    assert jax.config.jax_enable_x64 is False


def test_what_agrees():
    assert agree("loss 0.51, 1.2e-09", "loss  0.52,\n  7.0e-10")
    assert not agree("loss 0.51", "loss 0.71")
    assert not agree("loss 0.51", "cost 0.51")
    assert agree("12 of 20", "13 of 20", counts=1)
    assert not agree("12 of 20", "15 of 20", counts=1)
    assert not agree("accuracy 0.91", "accuracy 0.51", counts=1)


def test_the_readme_has_the_two_commands_first():
    commands = re.search(r"```\w*\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert len(commands) == 2
    assert "fnn train digits" in commands[0]
    assert "pytest" in commands[1]


def test_the_equations_table_names_what_exists():
    rows = re.findall(r"\| `fnn/([\w/]+)\.py` \| ([^|]*) \|", README)
    assert len(rows) >= 15
    for path, names in rows:
        module = importlib.import_module(f"fnn.{path.replace('/', '.')}")
        for name in re.findall(r"`(\w+)`", names):
            assert name in defined(module), f"{path}: {name}"


def defined(module):
    """The names that a module's own source defines, imports left out."""
    tree = ast.parse(source_of(module))
    names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assigned = (t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets)
    return names | {t.id for t in assigned if isinstance(t, ast.Name)}


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = (ROOT / page).parent / path if path else ROOT / page
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.M) if anchor else []
            assert not anchor or anchor in map(slug, headings), target


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", TEXT)
def test_files_and_names_that_pages_mention_exist(page):
    text = TEXT[page]
    if page == "CHANGELOG.md":
        # What was released is history. What is gone is named too: an arrow leads from it to its new
        # name.
        text = re.split(r"^## ", text, flags=re.M)[1]
        text = re.sub(r"`[^`]*`\s+->", "", text)
    for path in set(re.findall(r"(?<![\w/.])(?:fnn|tests|docs|benchmarks)/[\w/]+\.\w+", text)):
        assert (ROOT / path).exists(), path
    for name in set(re.findall(r"(?<![\w./-])fnn(?:\.[A-Za-z]\w*)+", text)):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", TEXT)
def test_the_tests_that_pages_name_exist(page):
    sources = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    known = set(re.findall(r"^def (test_\w+)", "\n".join(sources), re.M))
    named = set(re.findall(r"`(test_\w+)`", TEXT[page]))
    assert named - known == set()


@pytest.mark.parametrize("page", TEXT)
def test_extras_that_pages_install_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:\.|fnn)\[([\w,]+)\]", TEXT[page]):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_every_page_is_on_the_site_and_its_versions_agree():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = set(re.findall(r": ([\w-]+\.md)$", nav, re.M))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - pages == set()
    assert f"version: {fnn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{fnn.__version__}]" in TEXT["CHANGELOG.md"]
