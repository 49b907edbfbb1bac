"""Alternating timing: every contestant once a round, so that what slows the machine slows all.

A shared machine drifts: absolute times are worth little, ratios within a round a lot. So the
contestants take turns, a round's times belong together, and what is compared is the median
of the rounds' ratios.

    >>> samples = alternate({"ours": lambda: work(a), "theirs": lambda: work(b)})
    >>> samples["ours"].median                            # seconds per call
    >>> ratio(samples["theirs"], samples["ours"]).median  # how many times faster ours is
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax

REST = 0.3
"""Seconds for which PyTorch's and BLAS's idle worker threads may spin, and a little more."""
WARM_UP = 0.1
"""Seconds of work after which a processor that has slept runs as fast as one that has not: the
first 50 ms after a rest were seen to take 1.4 times as long."""


class Samples(NamedTuple):
    """One number per round, and the seconds that the first call took (with compilation)."""

    values: list[float]
    first: float = math.nan

    @property
    def median(self) -> float:
        """The second quartile."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        if len(self.values) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def summary(self) -> dict[str, float]:
        """For a JSON file."""
        low, high = self.quartiles
        return {
            "median": self.median,
            "quartile_1": low,
            "quartile_3": high,
            "rounds": len(self.values),
        } | ({} if math.isnan(self.first) else {"first_call": self.first})


def alternate(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 20,
    least: float = 0.01,
    rest_after: Collection[str] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Time the contestants in turn: the seconds of one call, for each round.

    Each is called first to compile and once more to see how often it must be called for
    a sample of at least `least` seconds. A call ends when the JAX arrays it returns are
    ready. The order of a round is drawn anew for each. After those named in `rest_after`
    everything pauses, until their libraries' worker threads sleep; whoever comes next finds
    a processor that has slept too, so that then all run for `WARM_UP` before a sample. For
    work on this thread alone, such as tracing, `clock=time.thread_time` leaves out the
    others'.
    """
    warm_up = WARM_UP if rest_after else 0

    def seconds(name: str, calls: int) -> float:
        contestant = contestants[name]
        start = clock()
        for _ in range(calls):
            jax.block_until_ready(contestant())
        return (clock() - start) / calls

    def sample(name: str, calls: int) -> float:
        end = time.perf_counter() + warm_up
        while time.perf_counter() < end:
            seconds(name, 1)
        value = seconds(name, calls)
        if name in rest_after:
            time.sleep(REST)
        return value

    first = {name: seconds(name, 1) for name in contestants}
    calls = {name: max(1, round(least / sample(name, 1))) for name in contestants}
    values: dict[str, list[float]] = {name: [] for name in contestants}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(contestants), len(contestants)):
            values[name].append(sample(name, calls[name]))
    return {name: Samples(values[name], first[name]) for name in contestants}


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Samples]:
    """The seconds that each contestant says it took, for each round; each is called once before."""
    for contestant in contestants.values():
        contestant()
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            values[name].append(contestant())
    return {name: Samples(seconds) for name, seconds in values.items()}


def ratio(numerator: Samples, denominator: Samples) -> Samples:
    """Round by round, numerator over denominator: how many times as long it took."""
    return Samples([a / b for a, b in zip(numerator.values, denominator.values, strict=True)])
