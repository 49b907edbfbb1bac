"""Numbers that tell data, and single examples, from others."""

import hashlib

import numpy as np

from fnn.data import Dataset
from fnn.training.evaluation import CHUNK

SEEN = 2**20
"""No digests above this many examples, at 8 bytes each."""


def of_data(examples: Dataset) -> str:
    """SHA-256 of everything that training reads of the data."""
    names = (examples.classes, examples.features)
    coded = [column for column in examples.columns if column.kind != "number"]
    content = hashlib.sha256(repr((*names, examples.columns) if coded else names).encode())
    for part in (examples, examples.test):
        for a in () if part is None else (part.x, part.y):
            content.update(f"{a.dtype}{a.shape}".encode())
            content.update(np.ascontiguousarray(a).reshape(-1).data)
    return content.hexdigest()


def of_examples(examples: Dataset) -> np.ndarray:
    """One number per example, of its features and its target: (n,) uint64.

    Equal for equal examples, whatever their order; others differ, except with a probability of
    about 2^-64. Multilinear hashing; Lemire & Kaser 2014.
    """
    n, d_in = examples.x.shape
    width = d_in + examples.y.reshape(n, -1).shape[1]
    keys = np.random.PCG64(0).random_raw(width) | np.uint64(1)
    found = np.empty(n, np.uint64)
    for rows in (slice(i, i + CHUNK) for i in range(0, n, CHUNK)):
        y = examples.y[rows].reshape(-1, width - d_in)
        row = np.concatenate([examples.x[rows], y], 1, dtype=np.float64) + 0.0  # -0 is 0
        bits = row.view(np.uint64)
        found[rows] = ((bits ^ (bits >> np.uint64(32))) * keys).sum(1)
    return found
