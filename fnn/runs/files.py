"""A run in its folder.

    run.safetensors   the state, the scaling, the settings and the history: the whole run
    history.csv       the history as a table, see `report`
    curves.png        the history as a picture
    report.html       a page about the run

Everything that a run needs is in one file, so that a crash leaves the run as it was after some
epoch. With the data, a run's settings decide every bit of its result.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fnn import atomic, checkpoint, numbers
from fnn.data import DataError, Encoding, Scaling
from fnn.data.encoding import features_of
from fnn.runs._bins import Bins
from fnn.runs.run import Run
from fnn.runs.settings import Settings
from fnn.runs.training import initial_state
from fnn.training.fitting import Progress

FILE = "run.safetensors"
LISTS = {"features": str, "classes": str, "targets": str, "sizes": int, "history": dict,
         "margins": float, "weights": float}  # fmt: skip
"""What the lists in a file's metadata hold."""
EARLIER: Any = {"columns": [], "binned": [], "seen": 0, "learned": 1, "margins": [], "weights": []}
"""What the metadata of files from before these entries mean."""


def save(folder: Path, run: Run) -> None:
    """Write the run's file: see `Run.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = ("digest", "learned", "features", "classes", "targets", "sizes", "margins", "weights")
    metadata = {name: getattr(run, name) for name in plain} | {"seen": len(run.seen)}
    metadata |= {"settings": run.settings._asdict(), "history": run.progress.history}
    metadata |= {"binned": run.bins.columns, "columns": run.inputs.as_metadata()}
    checkpoint.save(folder / FILE, _tree(run), metadata)


def check_apart(out: Path, *read: str | Path) -> None:
    """Raise DataError where a file that is about to be written is one of those that are read."""
    for path in read:
        if os.path.isfile(out) and os.path.isfile(path) and os.path.samefile(out, path):
            raise DataError(f"{out}: the file is read, and would be replaced")


def version(folder: Path) -> tuple[int, ...] | None:
    """What changes with each `save` to the folder; None where it holds no run."""
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(folder / FILE)
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
    return None


def check_writable(folder: Path, run: Run) -> None:
    """Write a file of the run's size to the folder, which is made where there is none, and remove
    it. Raises OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"probe{atomic.UNFINISHED}"
    try:
        checkpoint.save(probe, _tree(run))
    finally:
        probe.unlink(missing_ok=True)


def load(folder: str | Path) -> Run:
    """Read a run back, bit for bit.

    Settings that the file lacks, because they did not exist when it was written, have their
    defaults.

    Raises FileNotFoundError where there is no run; CheckpointError for a damaged file, for one
    that holds something else or numbers that are not finite, and for settings that this version
    does not know.

    >>> import fnn
    >>> fnn.runs.load("no/such/folder")
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] there is no trained run: 'no/such/folder/run.safetensors'
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no trained run", str(path))
    held = EARLIER | checkpoint.read_metadata(path)
    try:
        run = _described(held)
        state = jax.eval_shape(lambda: initial_state(run))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        problem = f"{error} not found" if isinstance(error, KeyError) else str(error)
        reason = f"{path}: not a run that this version of fnn can read: {problem}"
        raise checkpoint.CheckpointError(reason) from error
    run = run._replace(progress=Progress(state, held["history"], state))
    tree = checkpoint.load(path, _tree(run))
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.isfinite(leaf).all():
            where = jax.tree_util.keystr(place, simple=True, separator=".")
            raise checkpoint.CheckpointError(f"{path}: {where} is not finite")
    return run._replace(
        seen=tree.get("seen", run.seen),
        inputs=run.inputs._replace(scaling=tree["inputs"]),
        outputs=tree["outputs"],
        bins=run.bins._replace(edges=tree.get("edges", run.bins.edges)),
        progress=Progress(tree["state"], held["history"], tree.get("best", tree["state"])),
    )


def _described(held: dict[str, Any]) -> Run:
    """The run that a file's metadata describes, with arrays that only have their shapes."""
    _check_types(held)
    settings = Settings.of(held["settings"])
    features, classes, targets = (tuple(held[k]) for k in ("features", "classes", "targets"))
    d_in, *_, k = held["sizes"]
    inputs, outputs = (Scaling(_empty(d), _empty(d)) for d in (d_in, k))
    columns, binned = features_of(held["columns"]), tuple(held["binned"])
    encoding = Encoding(columns, inputs, () if columns else features)
    bins = Bins(binned, _empty((len(binned), (settings.bins or 0) + 1), np.float32))
    seen, progress = _empty(held["seen"], np.uint64), Progress(None, held["history"], None)
    learned = numbers.count("run", learned=held["learned"])
    names, decided = (features, classes, targets), (encoding, None if classes else outputs)
    later = tuple(tuple(held[name]) for name in ("margins", "weights"))
    run = Run(settings, held["digest"], seen, learned, *names, *decided, progress, bins, *later)
    width = sum(feature.width for feature in encoding.used) if columns else d_in
    sound = width == d_in and all(i in range(d_in) for i in binned)
    sound &= {*map(len, later)} <= {0, k} and np.min([0, *sum(later, ())]) == 0
    if not sound or len(set(classes)) < len(classes) or run.sizes != tuple(held["sizes"]):
        raise ValueError("its sizes are not those of its columns, bins, classes and layers")
    return run


def _check_types(held: dict[str, Any]) -> None:
    """Raise TypeError for lists of other types than `save` writes, KeyError for missing ones."""
    for name, kind in LISTS.items():
        if not isinstance(held[name], list) or not all(isinstance(v, kind) for v in held[name]):
            raise TypeError(f"{name} is of another type")
    if not all(isinstance(v, int | float) for entry in held["history"] for v in entry.values()):
        raise TypeError("history is of another type")


def _empty(shape: int | tuple[int, int], dtype: Any = np.float64) -> np.ndarray:
    """Zeros that take no memory, for a shape that only a file says."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def _tree(run: Run) -> dict[str, Any]:
    """The run's arrays. Without patience or members, the best state is the newest, not repeated."""
    progress, scaling = run.progress, run.inputs.scaling
    tree = {"state": progress.state, "inputs": scaling, "outputs": run.outputs}
    if run.settings.patience is not None or run.members > 1:
        tree["best"] = progress.best
    if run.bins.columns:
        tree["edges"] = run.bins.edges
    if len(run.seen):
        tree["seen"] = run.seen
    return tree
