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
OPTIONAL = ["union-attr", "index"]
"""Programs know which of two results they have, and do not narrow it."""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_the_pages_programs_have_types_that_agree(tmp_path):
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        programs = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
        if programs and page.name not in REUSED:
            path = tmp_path / f"page_{page.stem.lower().replace('-', '_')}.py"
            path.write_text("\n\n".join(programs))
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
