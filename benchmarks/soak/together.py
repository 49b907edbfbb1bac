"""Two to four commands at once on one folder, some of them killed: is any run lost?"""

import random
import signal
import time
from pathlib import Path

import sklearn.datasets
import sklearn.metrics  # noqa: F401

from benchmarks.soak import forked
from fnn.runs import files


def together(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Each command ends with 0 or with one line; the run in the folder never gets shorter, and is
    in the end the one of a single command."""
    rng = random.Random(seed)
    forked.compiled_once(folder.parent / "compiled")
    out = folder / "run"
    train = ["train", "iris", "--hidden", "4", "--save-every", "0"]
    counts = {"rounds": rounds, "commands": 0, "done": 0, "refused": 0, "killed": 0}
    longest, number = 0, 0

    def at_least(epochs: int) -> None:
        found = len(files.load(out).progress.history)
        (folder / "epochs").write_text(str(found))
        assert found >= epochs, f"{epochs} epochs became {found}"

    for step in range(1, rounds + 1):
        children = []
        for _ in range(rng.randrange(2, 5)):
            number += 1
            epochs = 5 * step + rng.randrange(5)
            args = [*train, "--resume", "--epochs", epochs, "--out", out]
            log = folder / f"log {number}"
            children.append((forked.started(forked.command(*args), log), log))
            time.sleep(rng.uniform(0, 0.5))
        doomed = rng.choice(children)[0] if rng.random() < 0.5 else None
        for child, log in children:
            code = forked.killed(child) if child == doomed else forked.ended(child)
            counts["commands"] += 1
            kind = {0: "done", -signal.SIGKILL: "killed"}.get(code, "refused")
            assert "Traceback" not in log.read_text(), log.read_text()
            assert kind != "refused" or log.read_text().count("Error: ") == 1, log.read_text()
            counts[kind] += 1
        if (out / files.FILE).exists():
            forked.done(lambda epochs=longest: at_least(epochs), folder / "log")  # type: ignore[misc]
            longest = int((folder / "epochs").read_text())
    last = ["--epochs", longest + 1, "--out"]
    forked.done(forked.command(*train, *last, out, "--resume"), folder / "log")
    forked.done(forked.command(*train, *last, folder / "one"), folder / "log")
    for path in out.iterdir():
        assert path.read_bytes() == (folder / "one" / path.name).read_bytes(), path.name
    return counts
