"""Data that can be learnt and needs no download, and the networks that all parts look at."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A network's widths, the batch size, the number of examples in an epoch, and that of the
    epochs of a run: enough for it to be some 100 steps."""

    sizes: tuple[int, ...]
    batch: int
    examples: int
    epochs: int

    @property
    def name(self) -> str:
        """Such as 784-128-10."""
        return "-".join(map(str, self.sizes))

    @property
    def steps(self) -> int:
        """Updates in an epoch; the last may have a smaller batch."""
        return -(-self.examples // self.batch)


CASES = [
    Case((64, 32, 10), 32, 1437, 10),
    Case((784, 128, 10), 128, 12_800, 2),
    Case((784, 512, 256, 10), 128, 6_400, 2),
    Case((784, 1024, 1024, 1024, 10), 512, 2_560, 1),
]


def clusters(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Examples around one random centre per class: x (n, d) float32, y (n,) int32.

    Three labels in ten are random: a loss that went to 0 would have some libraries, and not
    others, compute with denormal numbers, which are slow.
    """
    rng = np.random.default_rng(2026)
    classes, d = case.sizes[-1], case.sizes[0]
    y = rng.integers(0, classes, case.examples).astype(np.int32)
    centres = rng.normal(size=(classes, d))
    x = (centres[y] + 2 * rng.normal(size=(case.examples, d))).astype(np.float32) / 2
    return x, np.where(rng.uniform(size=case.examples) < 0.3, rng.permutation(y), y)
