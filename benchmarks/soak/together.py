"""Two to four commands at once on one folder, some of them killed: is any run lost?"""

import random
import subprocess
import sys
import time
from pathlib import Path

from fnn.cli import runs


def together(folder: Path, rounds: int) -> dict[str, int]:
    """Each command ends with 0 or with one line; the run in the folder never gets shorter, and is
    in the end the one of a single command."""
    rng = random.Random(0)
    out = folder / "run"
    train = [sys.executable, "-um", "fnn", "train", "iris", "--hidden", "4", "--save-every", "0"]
    counts = {"commands": 0, "done": 0, "refused": 0, "killed": 0}
    longest = 0
    for number in range(1, rounds + 1):
        children = []
        for _ in range(rng.randrange(2, 5)):
            epochs = 20 * number + rng.randrange(20)
            args = [*train, "--resume", "--epochs", str(epochs), "--out", str(out)]
            children.append(subprocess.Popen(args, stdout=-3, stderr=subprocess.PIPE, text=True))
            time.sleep(rng.uniform(0, 1))
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 4))
            rng.choice(children).kill()
        for child in children:
            _, errors = child.communicate()
            counts["commands"] += 1
            assert "Traceback" not in errors, errors
            kind = {0: "done", -9: "killed"}.get(child.returncode, "refused")
            assert kind != "refused" or errors.count("Error: ") == 1, errors
            counts[kind] += 1
        if (out / runs.FILE).exists():
            epochs_done = len(runs.load(out).progress.history)
            assert epochs_done >= longest, f"{longest} epochs became {epochs_done}"
            longest = epochs_done
    last = ["--epochs", str(longest + 1)]
    subprocess.run([*train, *last, "--resume", "--out", out], check=True, capture_output=True)
    subprocess.run([*train, *last, "--out", folder / "one"], check=True, capture_output=True)
    for path in out.iterdir():
        assert path.read_bytes() == (folder / "one" / path.name).read_bytes(), path.name
    print("together " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts
