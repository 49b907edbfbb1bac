"""`fnn train --resume`, killed at random instants: are the final files those of a run that never
stopped?"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fnn.atomic import UNFINISHED
from fnn.cli import runs


def kills(folder: Path, wanted: int) -> dict[str, Any]:
    """Runs killed again and again until they are done, each compared with one in one go."""
    rng = random.Random(0)
    command = [sys.executable, "-um", "fnn", "train", "iris", "--hidden", "8", "--epochs", "400"]

    def contents(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    subprocess.run([*command, "--out", folder / "whole"], check=True, capture_output=True)
    whole = contents(folder / "whole")
    killed, while_writing, before_first, compared = 0, 0, 0, 0
    while killed < wanted or compared == 0:
        out = folder / f"killed-{compared}"
        args = [*command, "--save-every", "0", "--resume", "--out", str(out)]
        epochs_to_live = rng.choice([0, rng.randrange(1, 60)])
        with subprocess.Popen(args, stdout=-1, stderr=-3, text=True) as child:
            for line in child.stdout:
                epochs_to_live -= line.startswith("epoch")
                early = line.startswith("gradient")
                if killed < wanted and epochs_to_live == 0 and (early or line.startswith("epoch")):
                    time.sleep(rng.uniform(0, 2 if early else 0.02))
                    child.kill()
                    break
        if child.returncode == 0:
            assert contents(out) == whole, "a run that was killed and resumed ended otherwise"
            compared += 1
            continue
        assert child.returncode == -signal.SIGKILL, f"exit code {child.returncode}"
        killed += 1
        while_writing += any(out.glob(f"*{UNFINISHED}")) if out.exists() else 0
        if (out / runs.FILE).exists():
            runs.load(out)
        else:
            before_first += 1
    print(
        f"kills    {killed} survived, {before_first} of them before the first save and "
        f"{while_writing} in the middle of a write; {compared} runs ended in the same bytes"
    )
    return {
        "kills": killed,
        "before_first_save": before_first,
        "while_writing": while_writing,
        "compared": compared,
    }
