"""`python -m benchmarks.soak [--quick] [--out FOLDER] [ATTACK ...]`: all attacks, or those named.

Several may run at once; those that fork (kills, slices, together) come before others of a process.
Each leaves its counts in soak.json and soak.txt of the folder.
"""

import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from fnn import atomic

ATTACKS = {
    "kills": ("kills", 50, 20),
    "slices": ("slices", 50, 6),
    "together": ("together", 10, 6),
    "calls": ("calls", 25_000, 20),
    "encodings": ("tables", 10_000, 15),
    "damage": ("damage", 5_000, 15),
    "fuzz": ("fuzz", 500, 24),
    "tables": ("tables", 500, 24),
    "crafted": ("crafted", 250, 20),
    "generated": ("generated", 250, 20),
    "compositions": ("compose", 500, 20),
    "sharded": ("sharded", 25, 20),
    "nestings": ("nestings", 500, 20),
}
"""Each attack's module, how much of it is a round, and how many rounds, each of its own seed."""
OTHERS = ("memory", "notice")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*ATTACKS, *OTHERS]))
@click.option("--quick", is_flag=True, help="Little of each, to see that it works.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the counts.")
def main(names: tuple[str, ...], quick: bool, out: Path | None) -> None:
    """Attack what is promised. The counts are kept after each round."""
    for name in names or [*ATTACKS, *OTHERS]:
        with tempfile.TemporaryDirectory(dir=_fast()) as parent:
            if name == "memory":
                _of("memory", name)(Path(parent), epochs=2_000 if quick else 40_000)
            elif name == "notice":
                _of("notice", name)(rounds=20 if quick else 100)
            else:
                _rounds(name, Path(parent), quick, out)


def _rounds(name: str, parent: Path, quick: bool, out: Path | None) -> None:
    """The rounds of an attack; of the quick ones there is one, a fiftieth of another."""
    module, size, rounds = ATTACKS[name]
    attack = _of(module, name)
    total: dict[str, int] = {}
    for seed in range(1 if quick else rounds):
        folder = parent / str(seed)
        folder.mkdir()
        began = time.monotonic()
        found = attack(folder, max(1, size // 50) if quick else size, seed)
        found |= {"seconds": round(time.monotonic() - began)}
        total = {key: total.get(key, 0) + value for key, value in found.items()}
        if out is not None:
            _keep(out, name, total)
    click.echo(f"{name:13}" + ", ".join(f"{value:,} {key}" for key, value in total.items()))


def _of(module: str, name: str) -> Callable[..., Any]:
    """The attack of this name, imported now: those that fork must not have used JAX before."""
    found: Callable[..., Any] = getattr(import_module(f"benchmarks.soak.{module}"), name)
    return found


def _fast() -> str | None:
    """A folder in memory, where there is one: a disk takes milliseconds per file."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _keep(out: Path, name: str, counts: dict[str, Any]) -> None:
    """Add an attack's counts to the results."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "soak.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    held = {each: held[each] for each in ATTACKS if each in held} | {name: counts}
    atomic.write(path, (json.dumps(held, indent=1) + "\n").encode())
    rows = [
        f"{each:13}" + ", ".join(f"{value:,} {key}" for key, value in found.items())
        for each, found in held.items()
    ]
    inputs = sum(found.get("inputs", 0) for found in held.values())
    kills = sum(found.get("kills", 0) + found.get("killed", 0) for found in held.values())
    rows.append(f"{'all':13}{inputs:,} inputs, {kills:,} kills")
    atomic.write(out / "soak.txt", ("\n".join(rows) + "\n").encode())


if __name__ == "__main__":
    main()
