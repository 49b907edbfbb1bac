"""What the documents show runs: the docstrings' examples and the README's programs."""

import doctest
import importlib
import re
from pathlib import Path

import jax
import pytest

import fnn

pytestmark = pytest.mark.usefixtures("compiled_once")

MODULES = sorted(path.stem for path in Path(fnn.__file__).parent.glob("*.py"))
README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__main__"])
def test_docstring_examples(module):
    name = "fnn" if module == "__init__" else f"fnn.{module}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_some_docstrings_have_examples():
    finder, found = doctest.DocTestFinder(), 0
    for module in (fnn.activations, fnn.layers, fnn.schedules):
        found += sum(len(test.examples) for test in finder.find(module))
    assert found >= 6


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_readme_programs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(PROGRAMS[number], f"README program {number}", "exec"), {"__name__": "readme"})
    assert jax.config.jax_enable_x64 is False


def test_the_readme_has_programs_and_the_two_commands():
    assert PROGRAMS
    commands = re.search(r"```\w*\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert len(commands) == 2
    assert "fnn train digits" in commands[0]
    assert "pytest" in commands[1]


def test_the_equations_table_names_what_exists():
    rows = re.findall(r"\| `fnn/(\w+)\.py` \| ([^|]*) \|", README)
    assert len(rows) >= 15
    for module, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(importlib.import_module(f"fnn.{module}"), name), f"{module}.{name}"
