"""`python -m benchmarks.soak [--quick] [ATTACK ...]`: all attacks, or those named."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.soak.calls import calls
from benchmarks.soak.crafted import crafted
from benchmarks.soak.damage import damage
from benchmarks.soak.fuzz import fuzz
from benchmarks.soak.kills import kills
from benchmarks.soak.memory import memory
from benchmarks.soak.notice import notice
from benchmarks.soak.together import together

ATTACKS: dict[str, Callable[[Path, bool], Any]] = {
    "calls": lambda folder, quick: calls(wanted=2_000 if quick else 200_000),
    "crafted": lambda folder, quick: crafted(folder, wanted=200 if quick else 5_000),
    "damage": lambda folder, quick: damage(folder, each=2_000 if quick else 100_000),
    "fuzz": lambda folder, quick: fuzz(folder, each=500 if quick else 40_000),
    "together": lambda folder, quick: together(folder, rounds=2 if quick else 30),
    "kills": lambda folder, quick: kills(folder, wanted=3 if quick else 1_000),
    "memory": lambda folder, quick: memory(folder, epochs=2_000 if quick else 40_000),
    "notice": lambda folder, quick: notice(rounds=20 if quick else 100),
}


def run(names: list[str], quick: bool) -> None:
    """Run these attacks, one after another."""
    for name in names or list(ATTACKS):
        with tempfile.TemporaryDirectory() as folder:
            ATTACKS[name](Path(folder), quick)


if __name__ == "__main__":
    run([name for name in sys.argv[1:] if name != "--quick"], quick="--quick" in sys.argv)
