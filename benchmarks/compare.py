"""Two machines, or two versions, side by side: what `throughput` measured on each.

The ratio is B's median over A's. The interval is the bootstrap's: 95% of the ratios of medians of
rounds that are drawn again with replacement, A's and B's each by themselves. It holds what varies
from round to round, not what varies from day to day: measure a machine twice to see that.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import table

DRAWS = 2000


def compare(first: Path, second: Path) -> str:
    """What differs between the machines, and a table of the sizes that both measured.

    Raises ValueError for a file that `throughput` has not written, and where no size is in both.
    """
    a, b = _read(first), _read(second)
    lines = [f"A: {first}", f"B: {second}"]
    lines += [f"{name}: {x} | {y}" for name, x, y in differences(a["machine"], b["machine"])]
    cells_a, cells_b = (
        {(c["dtype"], c["width"], c["batch"]): c for c in found["cells"]} for found in (a, b)
    )
    both = [size for size in cells_a if size in cells_b]
    if not both:
        raise ValueError(f"expected sizes that both measured, got {[*cells_a]} and {[*cells_b]}")
    rates, shares = [], []
    for size in both:
        x, y = cells_a[size], cells_b[size]
        name = "{}, {} wide, batch {}".format(*size)
        # Examples per second are the inverse of a step's time: A's over B's.
        speed = _shown(interval(y["step"]["values"], x["step"]["values"]))
        share = _shown(interval(*(c["share_of_products"]["values"] for c in (x, y))))
        rates.append([name, *_of("examples_per_second", x, y), speed])
        rates[-1] += ["-" if j is None else j for j in _of("joules_per_example", x, y)]
        shares.append([name, *_medians("peak_tflops", x, y), *_medians("share_of_products", x, y)])
        shares[-1] += [share]
    headings = ["", "A, examples/s", "B, examples/s", "B / A (95%)", "A, J/example", "B, J/example"]
    lines += ["", table(headings, rates), ""]
    headings = ["", "A, products' TFLOP/s", "B", "A, share of it", "B", "B / A (95%)"]
    lines += [table(headings, shares)]
    for name, mine, others in (("A", cells_a, cells_b), ("B", cells_b, cells_a)):
        alone = [", ".join(map(str, size)) for size in mine if size not in others]
        lines += [f"only in {name}: {'; '.join(alone)}"] if alone else []
    return "\n".join(lines)


def interval(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """median(b) / median(a), and the bounds of its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(values, (DRAWS, len(values))), axis=1) for values in (a, b)]
    low, high = np.quantile(medians[1] / medians[0], [0.025, 0.975])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The entries in which two machines differ: (name, A's, B's), entries of entries too."""
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*a, *b]):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differences(x, y)
        elif x != y:
            found.append((name, x, y))
    return found


def _of(entry: str, *cells: dict[str, Any]) -> list[Any]:
    return [cell[entry] for cell in cells]


def _medians(entry: str, *cells: dict[str, Any]) -> list[float]:
    return [cell[entry]["median"] for cell in cells]


def _shown(found: tuple[float, float, float]) -> str:
    return "{:.3f} ({:.3f} to {:.3f})".format(*found)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        found["cells"][0]["step"]["values"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a file of `throughput`, got {type(error).__name__}: {error}"
        ) from None
    return found
