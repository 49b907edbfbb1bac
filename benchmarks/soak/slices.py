"""Checkpoints of sharded arrays, their writer killed at random instants: is one save there,
whole?"""

import os
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.soak import forked
from fnn import checkpoint


def slices(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """A process saves a tree again and again, its entries the number of the save, and is killed;
    what is then loaded is of one save, and not older than one known to be done."""
    rng = random.Random(seed)
    forked.compiled_once(folder.parent / "compiled")
    place, log = folder / "sharded", folder / "log"

    def tree(number: int) -> Any:
        import jax
        import numpy as np

        jax.config.update("jax_num_cpu_devices", 2)
        rows = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
        w = np.full((512, 8), number, np.float32)
        return {"w": jax.device_put(w, rows), "b": np.full(3, number)}

    def save(first: int) -> None:
        for number in range(first, first + 10_000):
            checkpoint.save(place, tree(number))
            (folder / "done").write_text(str(number))

    def load(least: int) -> None:
        import numpy as np

        found = checkpoint.load(place, tree(0))
        numbers = {*np.asarray(found["w"]).reshape(-1).tolist(), *found["b"].tolist()}
        assert len(numbers) == 1, numbers
        assert numbers.pop() >= least

    counts = {"kills": 0, "saves": 0}
    forked.done(lambda: checkpoint.save(place, tree(0)), log)
    for _ in range(wanted):
        child = forked.started(lambda: save(counts["saves"] + 1), log)
        time.sleep(rng.uniform(0.05, 1.0))
        assert forked.killed(child) < 0, log.read_text()[-2000:]
        counts["kills"] += 1
        done = folder / "done"
        text = done.read_text() if done.exists() else ""
        counts["saves"] = max(counts["saves"], int(text or 0))
        forked.done(lambda: load(counts["saves"]), log)
    assert os.listdir(place)
    return counts
