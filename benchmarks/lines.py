"""The lines of the pages' short programs beside those of the same in Equinox and optax.

Counted are lines of code: neither blank ones nor comments nor imports. Both print what they found.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import table

ROOT = Path(__file__).parents[1]
TWINS = {
    "examples": ["dropout", "residual", "autoencoder", "lottery", "heads"],
    "experiments": [
        "sweep",
        "ensemble",
        "maml",
        "ntk",
        "physics",
        "noise",
        "weights",
        "rates",
        "average",
        "accumulate",
        "private",
    ],
    "recipes": [
        "finetune",
        "lora",
        "gan",
        "optimizer",
        "resume",
        "ctc",
        "sam",
        "vae",
        "flow",
        "ppo",
        "contrastive",
        "quantise",
    ],
    "transformer": ["transformer"],
}
"""By page in docs/, the twins of its first programs, in their order."""


class Pair(NamedTuple):
    """A page's program, the same in Equinox and optax, and what the page says both print."""

    ours: str
    theirs: str
    shown: str


def programs(page: str) -> list[tuple[str, str]]:
    """The programs of a page in docs/ that show what they print, and that."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)


def pairs() -> dict[str, Pair]:
    """By the name of the twin."""
    found = {}
    for page, names in TWINS.items():
        for name, (ours, shown) in zip(names, programs(page)[: len(names)], strict=True):
            theirs = (ROOT / "docs" / "twins" / f"{name}.py").read_text()
            found[name] = Pair(ours, theirs, shown)
    return found


def run(quick: bool) -> dict:
    """The lines of each, and what each printed."""
    result = {}
    for name, (ours, theirs, _) in pairs().items():
        result[name] = {
            "fnn": lines(ours),
            "Equinox + optax": lines(theirs),
            "printed": [] if quick else [output(ours), output(theirs)],
        }
    rows = [[name, r["fnn"], r["Equinox + optax"]] for name, r in result.items()]
    print(table(["program", "fnn, lines", "Equinox + optax, lines"], rows))
    for name, r in result.items():
        for who, printed in zip(("fnn", "Equinox"), r["printed"], strict=False):
            print(f"{name}, {who}: {printed}")
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
    """What the program prints. The files that it writes are dropped."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env=environment,
        )
    return done.stdout.strip()
