"""`fnn train --resume`, killed at random instants: are the final files those of a run that never
stopped?"""

import random
import signal
import time
from pathlib import Path

import sklearn.datasets
import sklearn.metrics  # noqa: F401

from benchmarks.soak import forked
from fnn.atomic import UNFINISHED
from fnn.runs import files


def kills(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """Runs killed again and again until they are done, each compared with one in one go."""
    rng = random.Random(seed)
    forked.compiled_once(folder.parent / "compiled")
    train = ["train", "iris", "--hidden", "8", "--epochs", "60", "--save-every", "0"]
    log = folder / "log"
    forked.done(forked.command(*train, "--out", folder / "whole"), log)
    began = time.monotonic()
    forked.done(forked.command(*train, "--out", folder / "0"), log)
    longest = time.monotonic() - began
    whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    counts = dict.fromkeys(["kills", "before_first_save", "while_writing", "same_bytes"], 0)
    out = folder / "1"
    while counts["kills"] < wanted or counts["same_bytes"] == 0:
        child = forked.started(forked.command(*train, "--resume", "--out", out), log)
        early = rng.choice([0, longest / 2]) if counts["kills"] < wanted else 60
        time.sleep(rng.uniform(early, max(early, longest)))
        code = forked.killed(child)
        if code == -signal.SIGKILL:
            counts["kills"] += 1
            there = list(out.iterdir()) if out.exists() else []
            counts["while_writing"] += any(path.name.endswith(UNFINISHED) for path in there)
            counts["before_first_save"] += not (out / files.FILE).exists()
            continue
        assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
        counts["same_bytes"] += 1
        out = folder / str(counts["same_bytes"] + 1)
    assert "Traceback" not in log.read_text()
    return counts
