"""Run files of whole checksums and hostile content: CheckpointError, or a run that predicts finite
numbers?"""

import copy
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn import checkpoint, runs
from fnn.checkpoint import CheckpointError
from fnn.data import DataError
from fnn.runs import files, training

WORDS: list[Any] = [None, True, 0, -1, 1, 2**31, 2**80, 10**11, 0.5, float("nan"), "", "adam"]
WORDS += [[], [1], [10**11], ["a", "a", "a"], {}, {"a": 1}, [[1]], [{}], "1" * 300, [0.5, 2]]


def crafted(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """A run's metadata with one to three entries replaced, and in some its arrays."""
    rng = random.Random(seed)
    run, examples = training.prepare("iris", runs.Settings((4,), "tanh", "sgd", 0.1, 32, 1, seed=0))
    run = training.advance(run, examples, lambda newest: None)
    files.save(folder, run)
    path = folder / files.FILE
    good, tree = checkpoint.read_metadata(path), files._tree(run)
    arrays, form = jax.tree.flatten(tree)
    leaves = [np.asarray(a) for a in arrays]
    counts = {"inputs": wanted, "refused": 0, "sound": 0}
    for _ in range(wanted):
        metadata = good | {"settings": dict(good["settings"])}
        for _ in range(rng.randrange(1, 4)):
            place = rng.choice([metadata, metadata["settings"]])
            if isinstance(place, dict):
                key = rng.choice(list(place)) if place and rng.random() < 0.95 else "other"
                place[key] = copy.deepcopy(rng.choice(WORDS))
            if not isinstance(metadata["settings"], dict):
                break
        factor = rng.choice([1, 1, np.nan, np.inf])
        with np.errstate(invalid="ignore"):
            scaled = [np.asarray(a if factor == 1 else a * 0 + factor, a.dtype) for a in leaves]
        checkpoint.save(path, jax.tree.unflatten(form, scaled), metadata)
        try:
            with np.errstate(all="ignore"):
                found = files.load(folder)
        except CheckpointError:
            counts["refused"] += 1
            continue
        try:
            assert np.isfinite(found.predict(examples.test.x)).all()
        except DataError:
            counts["refused"] += 1
            continue
        counts["sound"] += 1
    return counts
