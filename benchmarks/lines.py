"""The lines of docs/examples.md's programs beside those of the same in Equinox and optax.

Counted are lines of code: neither blank ones nor comments nor imports. Both print what they found.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.report import table

ROOT = Path(__file__).parents[1]
TWINS = ["dropout", "residual", "autoencoder", "lottery", "heads"]
"""The twins of the page's programs, in their order."""


def run(quick: bool) -> dict:
    """The lines of each, and what each printed."""
    page = (ROOT / "docs" / "examples.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    result = {}
    for name, ours in zip(TWINS, programs, strict=True):
        theirs = (ROOT / "benchmarks" / "twins" / f"{name}.py").read_text()
        result[name] = {
            "fnn": lines(ours),
            "Equinox + optax": lines(theirs),
            "printed": [] if quick else [output(ours), output(theirs)],
        }
    rows = [[name, r["fnn"], r["Equinox + optax"], *r["printed"]] for name, r in result.items()]
    printed = [] if quick else ["fnn prints", "Equinox prints"]
    print(table(["program", "fnn, lines", "Equinox + optax, lines", *printed], rows))
    return {"programs": result}


def lines(program: str) -> int:
    """Lines of code, without imports."""
    skipped = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = [
        line
        for number, line in enumerate(program.splitlines(), 1)
        if number not in skipped and line.strip() and not line.strip().startswith("#")
    ]
    return len(kept)


def output(program: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip()
