"""A user's programs as a type checker sees them: those of the pages, each page one program."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
REUSED = {"experiments.md"}
"""Pages of several programs, which give a name to another function again."""
APART = {"recipes.md"}
"""Pages of programs that each stand for themselves."""
OPTIONAL = ["union-attr", "index", "misc"]
"""Programs know which of two results they have, and do not narrow it."""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_the_pages_programs_have_types_that_agree(tmp_path):
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        programs = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        if programs and page.name not in REUSED:
            name = page.stem.lower().replace("-", "_")
            for i, text in enumerate(programs if page.name in APART else ["\n\n".join(programs)]):
                (tmp_path / f"page_{name}_{i}.py").write_text(text)
    flags = [
        "--check-untyped-defs",
        "--allow-redefinition",
        "--ignore-missing-imports",
        "--follow-imports=silent",
    ]
    flags += [f"--disable-error-code={code}" for code in OPTIONAL]
    pages = sorted(tmp_path.glob("*.py"))
    assert len(pages) >= 12
    command = [sys.executable, "-m", "mypy", "--config-file=", *flags, *pages]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
